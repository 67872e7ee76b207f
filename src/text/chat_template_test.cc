// Templates against what jinja2 renders (golden/jinja/jinja_cases.json, made by test/golden/make_jinja_cases.py),
// loading, and templates that attack the engine.
#include "text/chat_template.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <functional>

#include "base/file.h"

namespace pinion {
namespace {

Result<std::string> render(const std::string& source, const OrderedJson& context = OrderedJson::object()) {
  PINION_TRY(ChatTemplate parsed, ChatTemplate::parse(source));
  ChatInput input;
  input.now = 1721995200;  // 26 Jul 2024, 12:00 UTC
  input.add_generation_prompt = false;
  input.extra = OrderedJson::object();
  for (const auto& item : context.items()) {
    if (item.key() == "messages") {
      input.messages = item.value();
    } else if (item.key() == "tools") {
      input.tools = item.value();
    } else if (item.key() == "add_generation_prompt") {
      input.add_generation_prompt = item.value().get<bool>();
    } else {
      input.extra[item.key()] = item.value();
    }
  }
  return parsed.render(input);
}

std::string rendered(const std::string& source, const OrderedJson& context = OrderedJson::object()) {
  auto out = render(source, context);
  return out ? *out : "ERROR " + out.error().message;
}

OrderedJson default_context() {
  return OrderedJson::parse(R"j({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null,
    "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "é": "<ü>"}}}]}], "tools": null})j");
}

TEST(ChatTemplate, RendersAsJinja2) {
  auto cases = read_ordered_json_file(std::string(PINION_GOLDEN_DIR) + "/jinja/jinja_cases.json");
  ASSERT_TRUE(cases.ok()) << cases.error().message;
  ASSERT_GT((*cases)["cases"].size(), 800u);
  OrderedJson context = default_context();
  for (const auto& c : (*cases)["cases"]) {
    std::string source = c["template"];
    if (source.starts_with('@')) source = (*cases)["templates"][source.substr(1)];
    auto out = render(source, c.contains("context") ? c["context"] : context);
    if (c.contains("error")) {
      EXPECT_FALSE(out.ok()) << source << "\nrendered: " << *out << "\nPython raises: " << c["error"];
    } else {
      EXPECT_TRUE(out.ok()) << source << "\n" << out.error().message << "\nexpected: " << c["expected"];
      if (out.ok()) {
        EXPECT_EQ(*out, c["expected"].get<std::string>()) << source;
      }
    }
  }
}

TEST(ChatTemplate, RendersTheDemoModel) {
  auto loaded = ChatTemplate::load(std::string(PINION_SOURCE_DIR) + "/demo");
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  ASSERT_TRUE(loaded->has_value());
  ChatInput input;
  input.messages =
      OrderedJson::parse(R"j([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])j");
  auto out = (*loaded)->render(input);
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(*out, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  input.tools =
      OrderedJson::parse(R"j([{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}])j");
  out = (*loaded)->render(input);
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_NE(out->find("{\"name\": \"f\", \"parameters\": {\"b\": 1, \"a\": 2}}\n"), std::string::npos) << *out;
}

class ModelDir {
 public:
  ModelDir() : path_(std::filesystem::temp_directory_path() / ("chat_template_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~ModelDir() { std::filesystem::remove_all(path_); }
  void write(const char* name, std::string_view text) { ASSERT_TRUE(write_file(path_ / name, text).ok()); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(ChatTemplate, LoadsFromEachPlaceAndChoosesToolUse) {
  ModelDir dir;
  auto none = ChatTemplate::load(dir.path());
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());

  dir.write("tokenizer_config.json", R"j({"bos_token": {"content": "<b>", "special": true}, "eos_token": null,
    "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ eos_token }}d{{ tools is none }}"},
                      {"name": "tool_use", "template": "{{ bos_token }}t{{ tools|length }}"}]})j");
  dir.write("special_tokens_map.json",
            R"j({"bos_token": "<other>", "pad_token": "<p>", "eos_token": {"content": "<e>"}})j");
  auto t = ChatTemplate::load(dir.path());
  ASSERT_TRUE(t.ok()) << t.error().message;
  ChatInput input;
  EXPECT_EQ(*(*t)->render(input), "<b><e>dTrue");
  input.tools = OrderedJson::parse("[{}, {}]");
  EXPECT_EQ(*(*t)->render(input), "<b>t2");

  dir.write("chat_template.json", R"j({"chat_template": "json{{ pad_token }}"})j");
  EXPECT_EQ(*(*ChatTemplate::load(dir.path()).value()).render(input), "json<p>");
  dir.write("chat_template.jinja", "file\n");
  EXPECT_EQ(*(*ChatTemplate::load(dir.path()).value()).render(input), "file");
  dir.write("chat_template.jinja", "a\nb {% if %}");
  auto bad = ChatTemplate::load(dir.path());
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code, Errc::corrupt);
  EXPECT_NE(bad.error().message.find("line 2"), std::string::npos) << bad.error().message;
}

TEST(ChatTemplate, ErrorsSayWhatAndWhere) {
  auto raised = render("a\n\n{{ raise_exception('Only user and assistant roles!') }}");
  ASSERT_FALSE(raised.ok());
  EXPECT_EQ(raised.error().code, Errc::invalid_argument);
  EXPECT_EQ(raised.error().message, "Only user and assistant roles! (chat template, line 3)");
  auto refused = render("{% include 'x' %}");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Errc::unsupported);
  auto unknown = ChatTemplate::parse("{{ a|nope }}");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, Errc::corrupt);
  EXPECT_FALSE(ChatTemplate::parse("{{ '\xff' }}").ok());
  EXPECT_EQ(rendered("{{ '\\ud83d\\ude00' }}"), "😀");
  EXPECT_FALSE(ChatTemplate::parse("{{ '\\ud83d' }}").ok());
  ChatTemplate t = *ChatTemplate::parse("x");
  ChatInput input;
  input.extra["messages"] = 1;
  EXPECT_FALSE(t.render(input).ok());
}

TEST(ChatTemplate, ClockIsTheCallers) {
  setenv("TZ", "UTC", 1);
  EXPECT_EQ(rendered("{{ strftime_now('%Y-%m-%d %H:%M') }}"), "2024-07-26 12:00");
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStack = size_t{2} << 20;  // the sanitizer's frames are several times larger
#else
constexpr size_t kStack = 256 * 1024;
#endif

// Runs `body` on a thread with the smallest stack a server gives its workers.
void on_small_stack(void (*body)()) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStack), 0);
  pthread_t thread;
  auto run = [](void* f) -> void* {
    reinterpret_cast<void (*)()>(f)();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, reinterpret_cast<void*>(body)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

std::string repeat(std::string_view s, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += s;
  return out;
}

// Of this thread's own work.
double seconds_of(const std::function<void()>& f) {
  const auto now = [] {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double start = now();
  f();
  return now() - start;
}

TEST(ChatTemplate, HostileTemplatesAreBounded) {
  on_small_stack([] {
    const std::string attacks[] = {
        "{{ range(10**9) }}",
        "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}{% endfor %}{% endfor %}{% endfor "
        "%}",
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 'a\nb'|indent(10**9) }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.center(10**12) }}",
        "{{ 'a'|center(10**12) }}",
        "{{ 'a\tb'.expandtabs(10**12) }}",
        "{{ [1]|batch(10**12, 0)|list }}",
        "{{ [1]|slice(10**12)|list }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s|replace('x', 'xx') %}{% "
        "endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% "
        "endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ "
        "ns.s|tojson }}",
        "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
        "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}{{ ns.s < ns.t }}",
        "{% set ns = namespace(s=()) %}{% for i in range(60) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} "
        "}}",
        "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if true %}{% for i in [1] %}{{ [f(n ~ (n|string))|upper]|join }}{% endfor %}{% endif %}{% "
        "endmacro %}{{ f(1) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}",
        "{{ " + repeat("[", 100000) + repeat("]", 100000) + " }}",
        "{{ " + repeat("not ", 100000) + "1 }}",
        "{{ " + repeat("-", 100000) + "1 }}",
        "{{ 1" + repeat("|abs", 100000) + " }}",
        "{{ a" + repeat(".b", 100000) + " }}",
        "{{ a" + repeat("[0]", 100000) + " }}",
        "{{ 1" + repeat(" if 1 else 1", 100000) + " }}",
        repeat("{% if 1 %}", 100000) + repeat("{% endif %}", 100000),
        repeat("{% for x in [1] %}", 100000),
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum() }}",
        "{% import 'os' as os %}",
        "{{ [1].append(2) }}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ 99999999999999999999 }}",
        "{{ range(-9223372036854775807, 9223372036854775807) }}",
    };
    // The measure is what it costs to use up the steps, so that a slow or busy machine is no reason to fail.
    const double steps = seconds_of([&] { EXPECT_FALSE(render(attacks[1]).ok()); });
    for (const std::string& source : attacks) {
      const double seconds = seconds_of([&] {
        const auto out = render(source);
        EXPECT_FALSE(out.ok()) << source.substr(0, 100) << "\nrendered " << out->size() << " bytes";
      });
      EXPECT_LT(seconds, 30 * steps) << source.substr(0, 100);
    }
    // Long, but flat: no recursion, no quadratic cost.
    EXPECT_TRUE(render("{{ 1" + repeat(" + 1", 20000) + " }}").ok());
    EXPECT_TRUE(render("{{ 1" + repeat(" ~ 1", 20000) + " }}").ok());
    EXPECT_TRUE(render("{% if 0 %}" + repeat("{% elif 0 %}", 20000) + "{% endif %}").ok());
    // Cycles through namespaces and closures are freed (the leak check of the sanitizer build sees them).
    EXPECT_EQ(rendered("{% set n = namespace() %}{% set n.n = [n] %}{% macro m() %}{% endmacro %}{% set n.m = m %}"
                       "{% for i in [1, 2] %}{{ loop.changed([loop]) }}{% set n.l = loop %}{% endfor %}"),
              "TrueFalse");
    EXPECT_TRUE(
        render("{% set n = namespace(n=0) %}{% for i in range(20000) %}{% set n.n = namespace(p=n.n) %}{% endfor %}")
            .ok());
  });
}

TEST(ChatTemplate, LongConversationsRender) {
  OrderedJson context = OrderedJson::object();
  context["messages"] = OrderedJson::array();
  for (int i = 0; i < 100000; ++i)
    context["messages"].push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", "hello"}});
  auto out = render(
      "{% for m in messages %}{% if m.role == 'user' or m['role'] == 'assistant' %}"
      "{{ '<' + m.role + '>' + m.content|trim + ('' if loop.last else '\\n') }}{% endif %}{% endfor %}",
      context);
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->size(), 50000u * (6 + 11) + 100000u * 5 + 99999u);
}

}  // namespace
}  // namespace pinion
