#include "base/shrunk_maps.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace pinion {
namespace {

struct Slot {
  std::atomic<uintptr_t> begin = 0;  // 0: free
  std::atomic<size_t> size = 0;
  std::atomic<bool> shrunk = false;
  std::string path;  // not for the handler
};

constexpr size_t kSlots = 16384;
std::mutex mutex;          // for all but the handler, which reads atomics only
Slot slots[kSlots];        // static: the handler needs no allocation and no lifetime
std::atomic<size_t> used;  // slots that were ever taken
size_t page_size;
struct sigaction previous;

void pass_on(int signal, siginfo_t* info, void* context) {
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  ::signal(SIGBUS, SIG_DFL);
  ::raise(SIGBUS);  // delivered, and deadly, when the handler returns
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  const size_t n = used.load();
  for (size_t i = 0; i < n; ++i) {
    const uintptr_t begin = slots[i].begin.load();
    const size_t size = slots[i].size.load();
    if (begin == 0 || at < begin || at - begin >= size) continue;
    // Everything from this page on lies behind the file's end.
    const uintptr_t page = at / page_size * page_size;
    void* zeros = ::mmap(reinterpret_cast<void*>(page), begin + size - page, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) break;
    slots[i].shrunk = true;
    return;
  }
  pass_on(signal, info, context);
}

void install() {
  page_size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &previous);
}

}  // namespace

void watch_map(const std::byte* begin, size_t size, std::string_view path) {
  static std::once_flag once;
  std::call_once(once, install);
  const std::lock_guard lock(mutex);
  const size_t n = used.load();
  size_t i = 0;
  while (i < n && slots[i].begin != 0) ++i;
  if (i == kSlots) return;
  slots[i].path = path;
  slots[i].shrunk = false;
  slots[i].size = size;
  slots[i].begin = reinterpret_cast<uintptr_t>(begin);
  if (i == n) used = n + 1;
}

void unwatch_map(const std::byte* begin) {
  const std::lock_guard lock(mutex);
  for (size_t i = 0; i < used; ++i) {
    if (slots[i].begin == reinterpret_cast<uintptr_t>(begin)) slots[i].begin = 0;
  }
}

std::string shrunk_file() {
  const std::lock_guard lock(mutex);
  for (size_t i = 0; i < used; ++i) {
    if (slots[i].begin != 0 && slots[i].shrunk) return slots[i].path;
  }
  return {};
}

}  // namespace pinion
