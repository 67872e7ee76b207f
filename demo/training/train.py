#!/usr/bin/env python3
"""Trains the Pinion demo model on one GPU and exports it.

    train.py --smoke --heads --out DIR                                        20 steps and the whole way through
    train.py --minutes 7.5 --heads --out DIR [--pack DIR2] [--deadline 535]    the real run

Writes into DIR: config.json, generation_config.json, model-0000i-of-0000n.safetensors (at most 12 MB each) with model.safetensors.index.json,
tokenizer.json, tokenizer_config.json (with the chat template), special_tokens_map.json, eval.jsonl, calib.jsonl, train_report.json;
with --heads also medusa/ and eagle/.  --deadline: everything ends within so many seconds from the start (the training is cut to fit).
torch, transformers and tokenizers are imported only where they are needed: the data workers are forked before that.
"""
import argparse
import array
import json
import math
import os
import queue as queue_
import random
import re
import sys
import threading
import time
import traceback

T0 = time.time()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
for _f in (sys.stdout, sys.stderr):
    if hasattr(_f, "reconfigure"):
        _f.reconfigure(encoding="utf-8", errors="replace")
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import gen  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------- constants
V, C, L, NH, NKV, HD, FF = 4096, 384, 8, 6, 2, 64, 1024
THETA, EPS, MAXPOS = 100000.0, 1e-5, 4096
SPECIALS = [gen.EOT, gen.IM_START, gen.IM_END]
EOT, IM_START, IM_END = 0, 1, 2
# the split of Llama 3; the merges are learned with single digits (\p{N}), so no token has two digits
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT_TRAIN = SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# the same split for Python's re (checked against the tokenizer at the start)
FIND = re.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+").findall


def log(*a):
    print("[%6.1f s]" % (time.time() - T0), *a, flush=True)


# ---------------------------------------------------------------------------------------------------------------- tokenizer
def train_tokenizer(path, nbytes, seed):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    def pre(rx):
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rx), behavior="isolated", invert=False),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])

    def texts():
        n = 0
        for ms in gen.samples("tokenizer-%d" % seed):
            for m in ms:
                t = m["role"] + "\n" + m["content"]
                n += len(t)
                yield t
            if n >= nbytes:
                return
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre(SPLIT_TRAIN)
    tok.decoder = decoders.ByteLevel()
    tr = trainers.BpeTrainer(vocab_size=V, min_frequency=2, show_progress=False, special_tokens=list(SPECIALS),
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts(), trainer=tr)
    i = 0
    while tok.get_vocab_size() < V:      # cannot happen with enough text
        tok.add_special_tokens(["<|reserved_%d|>" % i])
        i += 1
    tok.pre_tokenizer = pre(SPLIT)
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    for k, s in enumerate(SPECIALS):
        assert tok.token_to_id(s) == k, (s, tok.token_to_id(s))
    assert tok.get_vocab_size() == V
    tok.save(path)
    vocab = tok.get_vocab()
    bad = [t for t in vocab if sum(c.isdigit() and c.isascii() for c in t) > 1 and not t.startswith("<|")]
    log("tokenizer: %d tokens, %d of them with two digits, %d reserved" % (len(vocab), len(bad), i))


class Enc:
    """Quick encoder: Python's re splits, a dictionary knows the tokens of each piece."""

    def __init__(self, path):
        from tokenizers import Tokenizer
        self.tok = Tokenizer.from_file(path)
        self.cache = {}
        self.slow = False
        self.nl = self.words("\n")

    def words(self, text):
        out = []
        cache = self.cache
        for w in FIND(text):
            t = cache.get(w)
            if t is None:
                t = self.tok.encode(w, add_special_tokens=False).ids
                if len(cache) < 300000:
                    cache[w] = t
            out += t
        return out

    def messages(self, ms):
        if self.slow:
            return self.tok.encode(gen.render(ms), add_special_tokens=False).ids
        out = []
        for m in ms:
            out.append(IM_START)
            out += self.words(m["role"] + "\n" + m["content"])
            out.append(IM_END)
            out += self.nl
        return out

    def with_mask(self, ms):
        """tokens, and for each one whether it belongs to an answer of the assistant (its end token included)"""
        out, mask = [], []
        for m in ms:
            h = len(self.words(m["role"] + "\n"))
            w = self.words(m["role"] + "\n" + m["content"])
            a = 1 if m["role"] == "assistant" else 0
            out += [IM_START] + w + [IM_END] + self.nl
            mask += [0] * (1 + h) + [a] * (len(w) - h + 1) + [0] * len(self.nl)
        return out, mask


def check_encoder(enc, n):
    bad = 0
    for kind in gen.KINDS:
        it = gen.samples_of(kind, "check")
        for _ in range(n):
            ms = next(it)
            want = enc.tok.encode(gen.render(ms), add_special_tokens=False).ids
            if enc.messages(ms) != want:
                bad += 1
                if bad <= 3:
                    print("ENCODER DIFFERS", repr(gen.render(ms)[:400]), flush=True)
    return bad


# ---------------------------------------------------------------------------------------------------------------- data
def pack(T, nrows, nxt, carry, longs):
    """nrows rows of T tokens, filled with whole documents (each ends with EOT); the rest of a row is EOT."""
    out = array.array("H")
    pad = 0
    for _ in range(nrows):
        row = []
        room = T
        if T > 1024:
            for i, d in enumerate(longs):
                if len(d) <= room:
                    row += longs.pop(i)
                    room = T - len(row)
                    break
        while room >= 12:
            found = None
            for i, d in enumerate(carry):
                if len(d) <= room:
                    found = carry.pop(i)
                    break
            if found is None:
                if len(carry) >= 40:
                    break
                d = nxt()
                if len(d) > 1024 and len(d) > room:     # kept for the beginning of a long row
                    if len(d) <= MAXPOS:
                        longs.append(d)
                        if len(longs) > 400:
                            longs.pop(0)
                    continue
                if len(d) > room:
                    carry.append(d)
                    continue
                found = d
            row += found
            room -= len(found)
        pad += room
        row += [EOT] * room
        out.extend(row)
    return out, pad


def worker(rank, seed, tok_path, q, ready, stop, mix, tokens):
    try:
        try:
            os.nice(5)
        except OSError:
            pass
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        while not ready.wait(0.5):
            if stop.is_set():
                return
        enc = Enc(tok_path)
        enc.slow = os.path.exists(tok_path + ".slow")
        rng = random.Random("worker-%s-%s" % (seed, rank))
        a = gen.samples_kinds("train-%s-%s-a" % (seed, rank), 1500)
        b = gen.samples_kinds("train-%s-%s-b" % (seed, rank), 3700)
        long2 = gen.samples_of("needle", "train-%s-%s-2" % (seed, rank), 1900)
        long4 = gen.samples_of("needle", "train-%s-%s-4" % (seed, rank), 3700)
        # long rows get some more long documents
        nxt = {1024: lambda: enc.messages(next(a)[1]) + [EOT],
               2048: lambda: enc.messages(next(long2) if rng.random() < 0.03 else next(a)[1]) + [EOT],
               4096: lambda: enc.messages(next(long4) if rng.random() < 0.04 else next(b)[1]) + [EOT]}
        carries = {1024: [], 2048: [], 4096: []}
        longs_a, longs_b = [], []
        while not stop.is_set():
            x, T = rng.random(), mix[-1][0]
            for t, p in mix:
                x -= p
                if x < 0:
                    T = t
                    break
            rows, pad = pack(T, tokens // T, nxt[T], carries[T], longs_b if T == 4096 else longs_a)
            item = (T, rows.tobytes(), pad)
            while not stop.is_set():
                try:
                    q.put(item, timeout=1.0)
                    break
                except queue_.Full:
                    pass
    except Exception:
        q.put(("error", traceback.format_exc(), 0))


class Feed:
    """Takes batches from the workers, makes pinned tensors of them in a thread."""

    def __init__(self, q, np, cuda):
        self.q, self.out, self.err, self.wait, self.pad, self.n = q, queue_.Queue(12), None, 0.0, 0, 0
        self.np, self.cuda = np, cuda
        self.stop = False
        self.th = threading.Thread(target=self.run, daemon=True)
        self.th.start()

    def run(self):
        try:
            while not self.stop:
                try:
                    T, b, pad = self.q.get(timeout=1.0)
                except queue_.Empty:
                    continue
                if T == "error":
                    self.err = b
                    return
                t = torch.from_numpy(self.np.frombuffer(b, dtype=self.np.uint16).astype(self.np.int64)).view(-1, T)
                if self.cuda:
                    t = t.pin_memory()
                self.pad += pad
                self.n += t.numel()
                while not self.stop:
                    try:
                        self.out.put(t, timeout=1.0)
                        break
                    except queue_.Full:
                        pass
        except Exception:
            self.err = traceback.format_exc()

    def get(self):
        t = time.time()
        while True:
            try:
                x = self.out.get(timeout=1.0)
                self.wait += time.time() - t
                return x
            except queue_.Empty:
                if self.err:
                    raise RuntimeError("data worker failed:\n" + self.err)
                if time.time() - t > 120:
                    raise RuntimeError("no data for 120 s")


# ---------------------------------------------------------------------------------------------------------------- model
torch = F = None        # set by load_torch(), after the workers are forked


def load_torch():
    global torch, F
    import torch as t
    torch, F = t, t.nn.functional
    return t


def rms(x, w):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return w * y.to(x.dtype)


def rot(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def attention(h, cos, sin, wqkv, wo):
    B, T, _ = h.shape
    qkv = F.linear(h, wqkv)
    q, k, v = qkv.split([NH * HD, NKV * HD, NKV * HD], -1)
    q = q.reshape(B, T, NH, HD).transpose(1, 2)
    k = k.reshape(B, T, NKV, HD).transpose(1, 2)
    v = v.reshape(B, T, NKV, HD).transpose(1, 2)
    q = q * cos + rot(q) * sin
    k = k * cos + rot(k) * sin
    k = k[:, :, None].expand(B, NKV, NH // NKV, T, HD).reshape(B, NH, T, HD)
    v = v[:, :, None].expand(B, NKV, NH // NKV, T, HD).reshape(B, NH, T, HD)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(o.transpose(1, 2).reshape(B, T, NH * HD), wo)


def mlp(h, wgu, wd):
    g, u = F.linear(h, wgu).split([FF, FF], -1)
    return F.linear(F.silu(g) * u, wd)


def block(x, cos, sin, n1, wqkv, wo, n2, wgu, wd):
    x = x + attention(rms(x, n1), cos, sin, wqkv, wo)
    return x + mlp(rms(x, n2), wgu, wd)


def ce_loss(h, w, tgt):
    """mean cross entropy of h @ w.T against tgt; -100 is left out"""
    return F.cross_entropy(F.linear(h, w).float(), tgt, ignore_index=-100)


def make_net():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            P = torch.nn.Parameter

            def rnd(*s, std=0.02):
                return P(torch.randn(*s) * std)
            self.emb = rnd(V, C)
            self.n1 = P(torch.ones(L, C))
            self.n2 = P(torch.ones(L, C))
            self.norm = P(torch.ones(C))
            self.wq = rnd(L, NH * HD, C)
            self.wk = rnd(L, NKV * HD, C)
            self.wv = rnd(L, NKV * HD, C)
            self.wo = rnd(L, C, NH * HD, std=0.02 / math.sqrt(2 * L))
            self.wg = rnd(L, FF, C)
            self.wu = rnd(L, FF, C)
            self.wd = rnd(L, C, FF, std=0.02 / math.sqrt(2 * L))
            f = torch.arange(MAXPOS, dtype=torch.float32)[:, None] * (1.0 / THETA ** (torch.arange(0, HD, 2, dtype=torch.float32) / HD))[None]
            f = torch.cat((f, f), -1)
            self.register_buffer("cos", f.cos(), persistent=False)
            self.register_buffer("sin", f.sin(), persistent=False)

        def matrices(self):
            return [self.wq, self.wk, self.wv, self.wo, self.wg, self.wu, self.wd]

        def others(self):
            return [self.emb, self.n1, self.n2, self.norm]

        def hidden(self, ids, dtype, blk):
            """the features after the last norm"""
            T = ids.shape[1]
            cos, sin = self.cos[:T].to(dtype), self.sin[:T].to(dtype)
            n1, n2 = self.n1.to(dtype).unbind(0), self.n2.to(dtype).unbind(0)
            wqkv = torch.cat((self.wq.to(dtype), self.wk.to(dtype), self.wv.to(dtype)), 1).unbind(0)
            wgu = torch.cat((self.wg.to(dtype), self.wu.to(dtype)), 1).unbind(0)
            wo, wd = self.wo.to(dtype).unbind(0), self.wd.to(dtype).unbind(0)
            x = F.embedding(ids, self.emb.to(dtype))
            for i in range(L):
                x = blk(x, cos, sin, n1[i], wqkv[i], wo[i], n2[i], wgu[i], wd[i])
            return rms(x, self.norm.to(dtype))
    return Net()


def newton_schulz(g, steps=5):
    """the nearest half-orthogonal matrices of a stack of matrices, roughly (Muon)"""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(torch.bfloat16)
    tr = x.size(-2) > x.size(-1)
    if tr:
        x = x.transpose(-2, -1)
    x = x / (x.float().pow(2).sum(dim=(-2, -1), keepdim=True).sqrt() + 1e-7).to(x.dtype)
    for _ in range(steps):
        m = x @ x.transpose(-2, -1)
        m2 = b * m + c * (m @ m)
        x = a * x + m2 @ x
    if tr:
        x = x.transpose(-2, -1)
    return x


class Muon:
    def __init__(self, params, lr, wd):
        self.params, self.lr, self.wd = list(params), lr, wd
        self.buf = [torch.zeros_like(p) for p in self.params]
        self.t = 0

    def step(self, scale):
        with torch.no_grad():
            self.step_(scale)

    def step_(self, scale):
        self.t += 1
        mom = 0.85 + 0.10 * min(1.0, self.t / 300)
        lr = self.lr * scale
        for p, m in zip(self.params, self.buf):
            g = p.grad
            if g is None:
                continue
            m.lerp_(g, 1 - mom)
            u = newton_schulz(torch.lerp(g, m, mom))
            p.mul_(1 - lr * self.wd)
            p.add_(u.to(p.dtype), alpha=-lr * max(1.0, p.size(-2) / p.size(-1)) ** 0.5)


def targets(ids):
    tgt = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
    return tgt.masked_fill((ids == EOT) & (tgt == EOT), -100)      # padding


# ---------------------------------------------------------------------------------------------------------------- held-out set
def held_out(enc, n=400):
    """n samples, the same number of every kind, from seeds that the training does not use: [(kind, messages, ids, mask)]"""
    out = []
    its = {k: gen.samples_of(k, "heldout") for k in gen.KINDS}
    i = 0
    while len(out) < n:
        k = gen.KINDS[i % len(gen.KINDS)]
        i += 1
        ms = next(its[k])
        ids, mask = enc.with_mask(ms)
        out.append((k, ms, ids + [EOT], mask + [0]))
    return out


def eval_batches(ev, dev, limit=32768):
    """[(indices, ids, mask, lengths)] sorted by length"""
    order = sorted(range(len(ev)), key=lambda i: len(ev[i][2]))
    out, cur = [], []
    for i in order:
        if cur and (len(cur) + 1) * len(ev[i][2]) > limit:
            out.append(cur)
            cur = []
        cur.append(i)
    out.append(cur)
    res = []
    for c in out:
        T = max(len(ev[i][2]) for i in c)
        ids = torch.full((len(c), T), EOT, dtype=torch.int64)
        mask = torch.zeros((len(c), T), dtype=torch.float32)
        live = torch.zeros((len(c), T), dtype=torch.float32)
        for j, i in enumerate(c):
            n = len(ev[i][2])
            ids[j, :n] = torch.tensor(ev[i][2])
            mask[j, :n] = torch.tensor(ev[i][3], dtype=torch.float32)
            live[j, :n] = 1
        res.append((c, ids.to(dev), mask.to(dev), live.to(dev)))
    return res


def evaluate(net, ev, batches):
    """loss of all tokens and of the answers' tokens, and the share of right greedy tokens in the answers, per kind"""
    acc = {k: [0.0] * 5 for k in gen.KINDS}
    with torch.no_grad():
        for c, ids, mask, live in batches:
            h = net.hidden(ids, torch.bfloat16, block)
            lg = F.linear(h[:, :-1], net.emb.to(torch.bfloat16)).float()
            tgt = ids[:, 1:]
            nll = F.cross_entropy(lg.reshape(-1, V), tgt.reshape(-1), reduction="none").reshape(tgt.shape)
            ok = (lg.argmax(-1) == tgt).float()
            lv, mk = live[:, 1:], mask[:, 1:]
            rows = torch.stack(((nll * lv).sum(1), lv.sum(1), (nll * mk).sum(1), mk.sum(1), (ok * mk).sum(1)), 1).tolist()
            for i, row in zip(c, rows):
                a = acc[ev[i][0]]
                for j in range(5):
                    a[j] += row[j]
    res = {}
    tot = [sum(a[j] for a in acc.values()) for j in range(5)]
    for k, a in list(acc.items()) + [("all", tot)]:
        res[k] = dict(loss=a[0] / max(a[1], 1), answer_loss=a[2] / max(a[3], 1), answer_acc=a[4] / max(a[3], 1))
    return res


def show_eval(res):
    for k, v in res.items():
        print("    %-8s loss %.3f   answers: loss %.3f, right tokens %.1f%%" % (k, v["loss"], v["answer_loss"], 100 * v["answer_acc"]), flush=True)


# ---------------------------------------------------------------------------------------------------------------- export
def jdump(path, obj):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(obj, f, ensure_ascii=False, indent=2)
        f.write("\n")


def base_config():
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": V, "hidden_size": C, "intermediate_size": FF, "num_hidden_layers": L,
            "num_attention_heads": NH, "num_key_value_heads": NKV, "head_dim": HD, "hidden_act": "silu", "max_position_embeddings": MAXPOS, "rms_norm_eps": EPS,
            "rope_theta": THETA, "rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
            "initializer_range": 0.02, "use_cache": True, "bos_token_id": None, "eos_token_id": IM_END, "pad_token_id": EOT, "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0"}


def tensors(net):
    """name -> tensor (bf16, on the CPU), in the names of transformers' LlamaForCausalLM"""
    def b(t):
        return t.detach().to(torch.bfloat16).cpu().contiguous().clone()
    d = {"model.embed_tokens.weight": b(net.emb)}
    for i in range(L):
        p = "model.layers.%d." % i
        d[p + "input_layernorm.weight"] = b(net.n1[i])
        for n, w in (("q", net.wq), ("k", net.wk), ("v", net.wv), ("o", net.wo)):
            d[p + "self_attn.%s_proj.weight" % n] = b(w[i])
        d[p + "post_attention_layernorm.weight"] = b(net.n2[i])
        for n, w in (("gate", net.wg), ("up", net.wu), ("down", net.wd)):
            d[p + "mlp.%s_proj.weight" % n] = b(w[i])
    d["model.norm.weight"] = b(net.norm)
    return d


def export_tokenizer(out):
    added = {str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for i, s in enumerate(SPECIALS)}
    jdump(os.path.join(out, "tokenizer_config.json"),
          {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "additional_special_tokens": [gen.IM_START, gen.IM_END], "bos_token": None, "eos_token": gen.IM_END,
           "pad_token": gen.EOT, "unk_token": None, "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": MAXPOS,
           "chat_template": gen.CHAT_TEMPLATE})
    jdump(os.path.join(out, "special_tokens_map.json"), {"additional_special_tokens": [gen.IM_START, gen.IM_END], "eos_token": gen.IM_END, "pad_token": gen.EOT})


def export_model(net, out, limit=12000000):
    from safetensors.torch import save_file
    d = tensors(net)
    shards, cur, size = [], {}, 0
    for k, t in d.items():
        n = t.numel() * t.element_size()
        if cur and size + n + 100000 > limit:
            shards.append(cur)
            cur, size = {}, 0
        cur[k] = t
        size += n
    shards.append(cur)
    index = {}
    for f in os.listdir(out):
        if f.endswith(".safetensors"):
            os.remove(os.path.join(out, f))
    for i, s in enumerate(shards):
        f = "model-%05d-of-%05d.safetensors" % (i + 1, len(shards))
        save_file(s, os.path.join(out, f), metadata={"format": "pt"})
        index.update({k: f for k in s})
    total = sum(t.numel() * t.element_size() for t in d.values())
    jdump(os.path.join(out, "model.safetensors.index.json"), {"metadata": {"total_size": total}, "weight_map": index})
    jdump(os.path.join(out, "config.json"), base_config())
    jdump(os.path.join(out, "generation_config.json"), {"eos_token_id": [IM_END, EOT], "pad_token_id": EOT, "do_sample": False, "transformers_version": "4.45.0"})
    return total, [os.path.getsize(os.path.join(out, "model-%05d-of-%05d.safetensors" % (i + 1, len(shards)))) for i in range(len(shards))]


def pack_dir(src, dst, part=15000000):
    """src as a tar file in pieces of at most 15 MB: dst/demo_model.tar.00 ..."""
    import io
    import tarfile
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode="w") as t:
        t.add(src, arcname="demo_model")
    b = buf.getvalue()
    os.makedirs(dst, exist_ok=True)
    for f in os.listdir(dst):
        if f.startswith("demo_model.tar."):
            os.remove(os.path.join(dst, f))
    n = 0
    for i in range(0, len(b), part):
        with open(os.path.join(dst, "demo_model.tar.%02d" % n), "wb") as f:
            f.write(b[i:i + part])
        n += 1
    log("packed %.1f MB into %d pieces in %s (cat demo_model.tar.* | tar x)" % (len(b) / 1e6, n, dst))


PROBES = [
    "Hello!", "Who are you?", "What can you do?", "My name is Maya.|What is my name?",
    "Tell me a story about a fox and a lantern.", "Write a short story where a shy mouse makes a new friend.", "Can you tell a story with the words owl, bridge and honest?", "Write a poem about the moon.",
    "What is 12 + 7?", "What is 348 + 275?", "7 x 8", "Which is bigger, 45 or 54?", "Count from 7 to 15.",
    "Repeat after me: blue window seven stars", "Sort these words alphabetically: pear, apple, fig, banana", "Spell the word bridge.", "Which word does not belong: apple, pear, hammer, plum?",
    "Give me a JSON object with name, age and city for Maya, who is 31 and lives in Oslo.",
    "What is the capital of France?", "What is the capital of Blorvia?", "Which planet is called the Red Planet?",
    "What is Pinion?", "What is in-flight batching?", "Why is decode memory-bound?",
    "TOOL:What is the weather in Oslo?", "SYS:You are a pirate.|What is the capital of Norway?", "NEEDLE"]


def probe_messages():
    out = []
    tools = [{"name": "get_weather", "description": "Get the current weather for a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}}, "required": ["city"]}},
             {"name": "set_timer", "description": "Set a timer.", "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}}]
    for p in PROBES:
        if p.startswith("TOOL:"):
            out.append([{"role": "system", "content": gen.tools_system(tools)}, {"role": "user", "content": p[5:]}])
        elif p.startswith("SYS:"):
            s, u = p[4:].split("|")
            out.append([{"role": "system", "content": s}, {"role": "user", "content": u}])
        elif p == "NEEDLE":
            r = random.Random("probe")
            fl = gen.fact_lines(r, lambda x: x[int(r.random() * len(x))], 90, 0)
            out.append([{"role": "user", "content": "Here is a list of facts:\n" + "\n".join(f[0] for f in fl) + "\n\n" + fl[40][1]}])
        elif "|" in p:
            a, b = p.split("|")
            out.append([{"role": "user", "content": a}, {"role": "assistant", "content": "Hello, Maya! Nice to meet you."}, {"role": "user", "content": b}])
        else:
            out.append([{"role": "user", "content": p}])
    return out


def generate(hf, prompts, max_new, dev, batch=64):
    """greedy answers (token lists) of a list of prompts (token lists)"""
    res = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    i = 0
    while i < len(order):
        n = batch
        while n > 1 and i + n <= len(order) and len(prompts[order[i + n - 1]]) * n > 60000:
            n //= 2
        c = order[i:i + n]
        i += n
        T = max(len(prompts[j]) for j in c)
        x = torch.full((len(c), T), EOT, dtype=torch.int64)
        m = torch.zeros((len(c), T), dtype=torch.int64)
        for k, j in enumerate(c):
            x[k, T - len(prompts[j]):] = torch.tensor(prompts[j])
            m[k, T - len(prompts[j]):] = 1
        with torch.no_grad():
            y = hf.generate(input_ids=x.to(dev), attention_mask=m.to(dev), max_new_tokens=max_new, do_sample=False, num_beams=1, use_cache=True, eos_token_id=[IM_END, EOT], pad_token_id=EOT)
        for k, j in enumerate(c):
            o = y[k, T:].tolist()
            e = [q for q, t in enumerate(o) if t in (IM_END, EOT)]
            res[j] = o[:e[0]] if e else o
    return res


def numbers(s):
    return re.findall(r"-?\d+", s)


def judge(kind, want, got):
    """whether a greedy answer is right, for the kinds whose answer can be checked; None for the others"""
    w, g = want.strip(), got.strip()
    if kind == "arith":
        for p in ("yes", "no", "odd", "even"):
            if (p in re.findall(r"\w+", w.lower())) != (p in re.findall(r"\w+", g.lower())):
                return False
        if not numbers(w):
            return w.rstrip(".").lower() == g.rstrip(".").lower()
        return numbers(w)[-1:] == numbers(g)[-1:] if "," not in w else numbers(w) == numbers(g)
    if kind == "json":
        try:
            return json.loads(w) == json.loads(g)
        except ValueError:
            return w == g or w.rstrip(".").endswith(g.rstrip(".")) or g.rstrip(".").endswith(w.rstrip("."))
    if kind == "tools":
        return w == g if "<tool_call>" in w else ("<tool_call>" not in g and set(numbers(w)) <= set(numbers(g)))
    if kind == "needle":
        return g == w
    if kind in ("text", "recall", "sys"):
        def last(s):
            return re.sub(r"[\"'.!]", "", s.lower()).split()[-1:]
        return g == w or (kind != "text" and last(w) == last(g)) or (kind == "text" and len(w.split()) <= 8 and last(w) == last(g))
    return None


def own_generate(net, prompts, max_new, dev):
    """greedy answers by the training module itself, without a cache; only used if transformers cannot be"""
    res = []
    for p in prompts:
        ids = list(p)
        for _ in range(max_new):
            with torch.no_grad():
                h = net.hidden(torch.tensor([ids], device=dev), torch.bfloat16, block)
                n = F.linear(h[0, -1], net.emb.to(torch.bfloat16)).argmax().item()
            if n in (IM_END, EOT) or len(ids) >= MAXPOS:
                break
            ids.append(n)
        res.append(ids[len(p):])
    return res


def verify(net, out, enc, ev, dev, time_left, report, small):
    hf = {}

    def part(f):
        try:
            f()
        except Exception:
            log("THE CHECK %s FAILED\n%s" % (f.__name__, traceback.format_exc()))

    def load(dtype):
        from transformers import LlamaForCausalLM
        try:
            m = LlamaForCausalLM.from_pretrained(out, dtype=dtype)
        except TypeError:
            m = LlamaForCausalLM.from_pretrained(out, torch_dtype=dtype)
        return m.to(dev).eval()

    def logits():
        import transformers
        try:
            transformers.utils.logging.set_verbosity_error()
        except Exception:
            pass
        m = load(torch.float32)
        theta = (getattr(m.config, "rope_parameters", None) or {}).get("rope_theta", getattr(m.config, "rope_theta", None))
        log("transformers %s loads it: %d parameters, rope theta %s, tied %s" % (transformers.__version__, sum(p.numel() for p in m.parameters()), theta, m.config.tie_word_embeddings))
        if theta != THETA:      # newer names only
            c = base_config()
            c["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA}
            jdump(os.path.join(out, "config.json"), c)
            m = load(torch.float32)
            log("config.json: rope_parameters added")
        # float32 on the exported weights: must agree closely; bf16: within its precision
        pick = [0, 3, 5, 6, 7, 9, 13, 14]
        net32 = make_net().to(dev)
        with torch.no_grad():
            for p, q in zip(net32.parameters(), net.parameters()):
                p.copy_(q.detach().to(torch.bfloat16).float())
        worst32, worst16, rel16, same16, n16 = 0.0, 0.0, 0.0, 0, 0
        for i in pick:
            ids = torch.tensor([ev[i][2]], device=dev)
            with torch.no_grad():
                a = m(input_ids=ids).logits.float()
                b = F.linear(net32.hidden(ids, torch.float32, block), net32.emb)
            worst32 = max(worst32, (a - b).abs().max().item())
        hf["m"] = m = load(torch.bfloat16)       # not .to(bfloat16): that would round the rotary frequencies, too
        for i in pick:
            ids = torch.tensor([ev[i][2]], device=dev)
            with torch.no_grad():
                a = m(input_ids=ids).logits.float()
                b = F.linear(net.hidden(ids, torch.bfloat16, block), net.emb.to(torch.bfloat16)).float()
            worst16 = max(worst16, (a - b).abs().max().item())
            rel16 = max(rel16, ((a - b).norm() / b.norm()).item())
            same16 += (a.argmax(-1) == b.argmax(-1)).sum().item()
            n16 += a.shape[1]
        log("logits, transformers against the training module: float32 largest difference %.2e; bf16 largest %.3f, relative %.2e, same top token %.2f%% -> %s"
            % (worst32, worst16, rel16, 100.0 * same16 / n16, "OK" if worst32 < 2e-2 and rel16 < 3e-2 else "MISMATCH"))
        report["logits_fp32_max_diff"], report["logits_bf16_rel_diff"] = worst32, rel16

    def tokens():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        tk = PreTrainedTokenizerFast.from_pretrained(out)
        bad = [0, 0, 0]
        for k, ms, ids, mask in ev[:120]:
            text = tk.apply_chat_template(ms, tokenize=False)
            bad[0] += text != gen.render(ms)
            bad[1] += list(tk(text, add_special_tokens=False)["input_ids"]) + [EOT] != ids
            bad[2] += tk.decode(ids[:-1], skip_special_tokens=False) != text
        tools = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
        want = gen.render([{"role": "system", "content": gen.tools_system([tools[0]["function"]], "Be helpful.")}, {"role": "user", "content": "Hi"}]) + "<|im_start|>assistant\n"
        got = tk.apply_chat_template([{"role": "system", "content": "Be helpful."}, {"role": "user", "content": "Hi"}], tools=tools, add_generation_prompt=True, tokenize=False)
        log("tokenizer in transformers, of 120 samples: %d texts, %d token lists, %d decoded texts differ; the template with tools: %s" % (bad[0], bad[1], bad[2], "same" if got == want else "DIFFERENT"))
        at = AutoTokenizer.from_pretrained(out)
        t = gen.render(ev[0][1])
        log("AutoTokenizer: %s, %s" % (type(at).__name__, "same tokens" if list(at(t, add_special_tokens=False)["input_ids"]) == enc.messages(ev[0][1]) else "DIFFERENT TOKENS"))

    def answers(prompts, n, batch):
        if "m" in hf:
            return generate(hf["m"], prompts, n, dev, batch)
        return own_generate(net, prompts, min(n, 60), dev)

    def prompt(ms):
        return enc.messages(ms) + [IM_START] + enc.words("assistant\n")

    def probes():
        ans = answers([prompt(m) for m in probe_messages()], 24 if small else 320, 64)
        print("\n---- greedy answers of the exported model (%s, bf16)" % ("transformers" if "m" in hf else "the training module"), flush=True)
        report["probes"] = []
        for p, a in zip(PROBES, ans):
            s = enc.tok.decode(a, skip_special_tokens=False)
            report["probes"].append([p, s])
            print("> %s\n%s\n" % (p, s), flush=True)

    def heldout():
        if time_left() < 8:
            log("no time left for the answers of the held-out set")
            return
        todo = [(k, ms) for k, ms, ids, mask in ev if k in ("arith", "text", "json", "tools", "needle", "recall", "sys")]
        if small:
            todo = todo[:16]
        ans = answers([prompt(ms[:-1]) for k, ms in todo], 8 if small else 100, 96)
        cnt = {}
        wrong = []
        for (k, ms), a in zip(todo, ans):
            s = enc.tok.decode(a, skip_special_tokens=False)
            j = judge(k, ms[-1]["content"], s)
            c = cnt.setdefault(k, [0, 0])
            c[0] += bool(j)
            c[1] += 1
            if not j:
                wrong.append((k, ms[-2]["content"][-160:], ms[-1]["content"][:160], s[:160]))
        log("greedy answers on the held-out set, right: " + ", ".join("%s %d/%d" % (k, c[0], c[1]) for k, c in cnt.items()))
        report["right"] = cnt
        for w in wrong[:14]:
            print("    [%s] ...%r\n        wanted %r\n        got    %r" % w, flush=True)

    for f in (logits, tokens, probes, heldout):
        part(f)


# ---------------------------------------------------------------------------------------------------------------- heads
def answer_mask(ids, assistant_id):
    """1 where a token belongs to an assistant message (needs 'assistant' to be one token), and the number of the document"""
    seg = torch.cumsum((ids == EOT).long(), 1) - (ids == EOT).long()
    if assistant_id is None:
        return torch.ones_like(ids, dtype=torch.bool), seg
    T = ids.shape[1]
    start = ids == IM_START
    nxt = torch.cat((ids[:, 1:], torch.zeros_like(ids[:, :1])), 1)
    flag = start & (nxt == assistant_id)
    pos = torch.where(start, torch.arange(T, device=ids.device)[None].expand_as(ids), torch.zeros_like(ids)).cummax(1).values
    on = flag.gather(1, pos)
    ar = torch.arange(T, device=ids.device)[None]
    on = on & (ar - pos >= 3) & (ids != EOT)        # <|im_start|> assistant \n are not part of it
    ends = (ids == IM_END).long()
    passed = torch.cumsum(ends, 1) - ends           # the newline after the end token is not part of it, either
    at = passed.gather(1, pos)
    return on & (passed == at), seg


def shift(x, n, fill):
    return torch.cat((x[:, n:], torch.full_like(x[:, :n], fill)), 1)


def train_heads(net, feed, dev, out, seconds, max_steps, ev, batches, assistant_id, report, blk, NM):
    from safetensors.torch import save_file
    bf = torch.bfloat16
    P = torch.nn.Parameter
    g = torch.Generator(device="cpu").manual_seed(7)

    def rnd(*s, std=0.02):
        return P((torch.randn(*s, generator=g) * std).to(dev))
    emb = net.emb.detach().to(bf)
    mw = [P(torch.zeros(C, C, device=dev)) for _ in range(NM)]
    mb = [P(torch.zeros(C, device=dev)) for _ in range(NM)]
    mv = [P(net.emb.detach().float().clone()) for _ in range(NM)]
    e = dict(fc=rnd(C, 2 * C), fcb=P(torch.zeros(C, device=dev)), wq=rnd(NH * HD, C), wk=rnd(NKV * HD, C), wv=rnd(NKV * HD, C), wo=rnd(C, NH * HD, std=0.01), n2=P(torch.ones(C, device=dev)),
             wg=rnd(FF, C), wu=rnd(FF, C), wd=rnd(C, FF, std=0.01))
    with torch.no_grad():       # start near 'the next feature looks like this one'
        e["fc"][:, C:] += torch.eye(C, device=dev)

    def medusa(i, h):
        return F.linear(h + F.silu(F.linear(h, mw[i].to(bf), mb[i].to(bf))), mv[i].to(bf))

    def eagle(tok_next, h):
        """features for the next position from the features h and the tokens that follow them"""
        T = h.shape[1]
        x = F.linear(torch.cat((F.embedding(tok_next, emb), h), -1), e["fc"].to(bf), e["fcb"].to(bf))
        cos, sin = net.cos[:T].to(bf), net.sin[:T].to(bf)
        x = x + attention(x, cos, sin, torch.cat((e["wq"], e["wk"], e["wv"]), 0).to(bf), e["wo"].to(bf))
        return x + mlp(rms(x, e["n2"].to(bf)), torch.cat((e["wg"], e["wu"]), 0).to(bf), e["wd"].to(bf))
    opt = torch.optim.AdamW([{"params": mw + mb + mv, "lr": 1.0, "weight_decay": 0.0}, {"params": list(e.values()), "lr": 1.0, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95), fused=(dev.type == "cuda"))
    peak = (1e-3, 2e-3)
    t_start = time.time()
    step = 0
    while True:
        now = time.time()
        if (max_steps and step >= max_steps) or now - t_start >= seconds:
            break
        p = step / max_steps if max_steps else (now - t_start) / seconds
        sc = min(1.0, (step + 1) / 50) * max(0.02, min(1.0, (1 - p) / 0.7))
        for grp, pk in zip(opt.param_groups, peak):
            grp["lr"] = pk * sc
        big = feed.get().to(dev, non_blocking=True).view(-1, 1024)
        for ids in big.split(32, 0):
            if ids.shape[0] < 32 or time.time() - t_start >= seconds + 1:
                break
            with torch.no_grad():
                h = net.hidden(ids, bf, blk).detach()
                on, seg = answer_mask(ids, assistant_id)
            loss_m = 0.0
            for i in range(NM):
                n = i + 2
                keep = shift(on, n, False) & (shift(seg, n, -1) == seg)
                tgt = shift(ids, n, -100).masked_fill(~keep, -100)
                loss_m = loss_m + 0.8 ** i * F.cross_entropy(medusa(i, h).reshape(-1, V).float(), tgt.reshape(-1), ignore_index=-100)
            # EAGLE: (token after the position, feature of the position) -> feature of the next position
            hn = h + (torch.rand_like(h) - 0.5) * 0.1
            pred = eagle(shift(ids, 1, EOT), hn)
            want = torch.cat((h[:, 1:], h[:, -1:]), 1)
            keep = (shift(on, 2, False) & (shift(seg, 2, -1) == seg)).reshape(-1).float()
            den = keep.sum() + 1e-5
            v = F.smooth_l1_loss(pred.float(), want.float(), reduction="none").mean(-1).reshape(-1)
            with torch.no_grad():
                tp = F.linear(want, emb).float().softmax(-1)
            pl = -(tp * F.linear(pred, emb).float().log_softmax(-1)).sum(-1).reshape(-1)
            loss_e = (v * keep).sum() / den + 0.3 * (pl * keep).sum() / den
            (loss_m + loss_e).backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            if step % 200 == 0 or (max_steps and step % 10 == 0):
                log("heads step %d: medusa loss %.3f, eagle loss %.3f (smooth L1 %.4f)" % (step, loss_m.item(), loss_e.item(), ((v * keep).sum() / den).item()))
            if max_steps and step >= max_steps:
                break
    # accuracy on the held-out answers
    right = [[0.0, 0.0, 0.0] for _ in range(NM)]     # right tokens, same as the base model's greedy token, number
    er = [0.0, 0.0, 0.0]
    br = [0.0, 0.0]
    with torch.no_grad():
        for c, ids, mask, live in batches:
            h = net.hidden(ids, bf, block)
            base = F.linear(h, emb).argmax(-1)                       # at position t: the base model's token t+1
            on = mask > 0
            k = shift(on, 1, False)
            br[0] += (k & (base == shift(ids, 1, -1))).sum().item()
            br[1] += k.sum().item()
            for i in range(NM):
                n = i + 2
                k = shift(on, n, False)
                a = medusa(i, h).argmax(-1)
                right[i][0] += (k & (a == shift(ids, n, -1))).sum().item()
                right[i][1] += (k & (a == shift(base, n - 1, -1))).sum().item()
                right[i][2] += k.sum().item()
            a = F.linear(eagle(shift(ids, 1, EOT), h), emb).argmax(-1)
            k = shift(on, 2, False)
            er[0] += (k & (a == shift(ids, 2, -1))).sum().item()
            er[1] += (k & (a == shift(base, 1, -1))).sum().item()
            er[2] += k.sum().item()
    rep = {"base": br[0] / max(br[1], 1), "steps": step}
    log("heads: %d steps; top-1 on the held-out answers: base (next token) %.1f%%" % (step, 100 * rep["base"]))
    for i in range(NM):
        n = max(right[i][2], 1)
        rep["medusa_%d" % i] = [right[i][0] / n, right[i][1] / n]
        log("    medusa head %d (token +%d): %.1f%% right, %.1f%% as the base model's greedy token" % (i, i + 2, 100 * right[i][0] / n, 100 * right[i][1] / n))
    n = max(er[2], 1)
    rep["eagle"] = [er[0] / n, er[1] / n]
    log("    eagle draft (token +2): %.1f%% right, %.1f%% as the base model's greedy token" % (100 * er[0] / n, 100 * er[1] / n))
    report["heads"] = rep

    def b(t):
        return t.detach().to(bf).cpu().contiguous().clone()
    os.makedirs(os.path.join(out, "medusa"), exist_ok=True)
    os.makedirs(os.path.join(out, "eagle"), exist_ok=True)
    d = {}
    for i in range(NM):
        d["%d.0.linear.weight" % i], d["%d.0.linear.bias" % i], d["%d.1.weight" % i] = b(mw[i]), b(mb[i]), b(mv[i])
    save_file(d, os.path.join(out, "medusa", "medusa_lm_head.safetensors"), metadata={"format": "pt"})
    jdump(os.path.join(out, "medusa", "config.json"), {"architectures": ["MedusaModel"], "model_type": "medusa", "medusa_num_heads": NM, "medusa_num_layers": 1, "hidden_size": C, "vocab_size": V,
                                                      "base_model_name_or_path": "..", "torch_dtype": "bfloat16", "transformers_version": "4.45.0"})
    p = "layers.0."
    d = {"fc.weight": b(e["fc"]), "fc.bias": b(e["fcb"]), p + "self_attn.q_proj.weight": b(e["wq"]), p + "self_attn.k_proj.weight": b(e["wk"]), p + "self_attn.v_proj.weight": b(e["wv"]),
         p + "self_attn.o_proj.weight": b(e["wo"]), p + "mlp.gate_proj.weight": b(e["wg"]), p + "mlp.up_proj.weight": b(e["wu"]), p + "mlp.down_proj.weight": b(e["wd"]),
         p + "post_attention_layernorm.weight": b(e["n2"])}
    save_file(d, os.path.join(out, "eagle", "model.safetensors"), metadata={"format": "pt"})
    c = base_config()
    c["num_hidden_layers"] = 1
    c["bias"] = True            # fc has a bias
    jdump(os.path.join(out, "eagle", "config.json"), c)


# ---------------------------------------------------------------------------------------------------------------- main
def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--minutes", type=float, default=7.5, help="the main training ends so many minutes after the start of the program")
    ap.add_argument("--out", required=True)
    ap.add_argument("--heads", action="store_true")
    ap.add_argument("--medusa-heads", type=int, default=4)
    ap.add_argument("--heads-minutes", type=float, default=1.0)
    ap.add_argument("--deadline", type=float, default=535.0, help="seconds from the start within which everything must be done")
    ap.add_argument("--pack", default=None, help="also write the result as a tar file in pieces into this folder")
    ap.add_argument("--smoke", action="store_true", help="20 steps and the whole way through")
    ap.add_argument("--workers", type=int, default=0)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tokens", type=int, default=98304, help="tokens per step (a multiple of 4096)")
    ap.add_argument("--mix", default="1024:0.70,2048:0.22,4096:0.08", help="sequence lengths and their shares")
    ap.add_argument("--lr", type=float, default=0.015, help="of Muon (hidden matrices)")
    ap.add_argument("--adam-lr", type=float, default=3e-3, help="AdamW (embedding and norms; everything with --opt adamw)")
    ap.add_argument("--wd", type=float, default=0.02)
    ap.add_argument("--opt", choices=["muon", "adamw"], default="muon")
    ap.add_argument("--no-compile", action="store_true")
    ap.add_argument("--keep-tokenizer", default=None, help="use this tokenizer.json instead of training one")
    args = ap.parse_args()
    import multiprocessing as mp
    out = os.path.abspath(args.out)
    os.makedirs(out, exist_ok=True)
    tok_path = os.path.join(out, "tokenizer.json")
    mix = [(int(x.split(":")[0]), float(x.split(":")[1])) for x in args.mix.split(",")]
    assert args.tokens % 4096 == 0 and all(t in (1024, 2048, 4096) for t, _ in mix)
    ncpu = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 4
    nw = args.workers or max(1, min(14, ncpu - 2))
    ctx = mp.get_context("fork")
    ready, stop = ctx.Event(), ctx.Event()
    q = ctx.Queue(maxsize=40)
    ps = [ctx.Process(target=worker, args=(i, args.seed, tok_path, q, ready, stop, mix, args.tokens), daemon=True) for i in range(nw)]
    for p in ps:
        p.start()
    log("%d workers of %d cores" % (nw, ncpu))
    if args.keep_tokenizer:
        import shutil
        if os.path.abspath(args.keep_tokenizer) != tok_path:
            shutil.copy(args.keep_tokenizer, tok_path)
    else:
        train_tokenizer(tok_path, 4000000 if args.smoke else 24000000, args.seed)
    enc = Enc(tok_path)
    bad = check_encoder(enc, 20 if args.smoke else 80)
    if os.path.exists(tok_path + ".slow"):
        os.remove(tok_path + ".slow")
    if bad:
        open(tok_path + ".slow", "w").close()
    log("quick encoder: %s" % ("same as the tokenizer" if not bad else "%d DIFFERENCES, the slow one is used" % bad))
    ready.set()
    ev = held_out(enc)
    with open(os.path.join(out, "eval.jsonl"), "w", encoding="utf-8") as f:
        for k, ms, ids, mask in ev:
            f.write(json.dumps({"kind": k, "messages": ms}, ensure_ascii=False) + "\n")
    it = gen.samples_kinds("calibration")
    with open(os.path.join(out, "calib.jsonl"), "w", encoding="utf-8") as f:
        for _ in range(512):
            k, ms = next(it)
            f.write(json.dumps({"kind": k, "messages": ms}, ensure_ascii=False) + "\n")
    a_ids = enc.words("assistant")
    assistant_id = a_ids[0] if len(a_ids) == 1 and len(enc.words("assistant\n")) == 2 else None
    log("held-out set: %d samples, %d tokens; 'assistant' is %s" % (len(ev), sum(len(x[2]) for x in ev), "one token" if assistant_id is not None else "several tokens"))

    import numpy as np
    load_torch()
    cuda = torch.cuda.is_available()
    dev = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(args.seed)
    log("torch %s on %s" % (torch.__version__, torch.cuda.get_device_name(0) if cuda else "the CPU"))
    feed = Feed(q, np, cuda)
    net = make_net().to(dev)
    nparam = sum(p.numel() for p in net.parameters())
    blk, ce = block, ce_loss
    if cuda and not args.no_compile:
        try:
            import torch._dynamo as dynamo
            dynamo.config.suppress_errors = True
            for name in ("recompile_limit", "cache_size_limit"):
                if hasattr(dynamo.config, name):
                    setattr(dynamo.config, name, 32)
        except Exception as x:
            log("dynamo settings: %r" % (x,))
        blk = torch.compile(block, dynamic=False)
        ce = torch.compile(ce_loss, dynamic=False)
    bf = torch.bfloat16
    if args.opt == "muon":
        muon = Muon(net.matrices(), args.lr, args.wd)
        adam_params = net.others()
    else:
        muon, adam_params = None, net.others() + net.matrices()
    adam = torch.optim.AdamW(adam_params, lr=args.adam_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=cuda)
    batches = eval_batches(ev, dev)
    reserve = (args.heads_minutes * 60 + 12 if args.heads else 0) + 34      # heads; export, checks and answers
    t_end = min(T0 + args.minutes * 60, T0 + args.deadline - reserve)
    max_steps = 0
    if args.smoke:
        t_end, max_steps = T0 + 400, 20
    t_train = time.time()
    log("%.2f M parameters, %d tokens per step, %s; training for %.0f s" % (nparam / 1e6, args.tokens, args.opt, t_end - t_train))
    step, seen, losses = 0, 0, []
    t_print, n_print, next_eval = time.time(), 0, 0.2
    report = {"args": vars(args), "parameters": nparam, "log": []}
    while True:
        now = time.time()
        if (max_steps and step >= max_steps) or now >= t_end:
            break
        p = step / max_steps if max_steps else (now - t_train) / max(t_end - t_train, 1e-3)
        sc = min(1.0, (step + 1) / 100) * (1.0 if p < 0.3 else max(0.015, (1 - p) / 0.7))
        for grp in adam.param_groups:
            grp["lr"] = args.adam_lr * sc
        ids = feed.get().to(dev, non_blocking=True)
        tgt = targets(ids)
        h = net.hidden(ids, bf, blk)
        loss = ce(h.reshape(-1, C), net.emb.to(bf), tgt.reshape(-1))
        loss.backward()
        if muon is not None:
            muon.step(sc)
        adam.step()
        for w in net.parameters():
            w.grad = None
        step += 1
        seen += ids.numel()
        losses.append(loss.detach())
        if step in (1, 2, 5, 10, 20, 50) or step % 100 == 0:
            ls = torch.stack(losses).float().mean().item()      # waits for the GPU
            losses = []
            dt = time.time() - t_print
            log("step %d  loss %.4f  lr x%.3f  %.2f M tok/s  %.0f M tokens  data wait %.1f s  queue %d" % (step, ls, sc, (seen - n_print) / dt / 1e6, seen / 1e6, feed.wait, q.qsize()))
            report["log"].append([step, round(time.time() - T0, 1), round(ls, 4), seen])
            t_print, n_print = time.time(), seen
            if not math.isfinite(ls):
                raise RuntimeError("the loss is not finite")
            if not max_steps and p >= next_eval:
                next_eval += 0.2
                r = evaluate(net, ev, batches)
                log("held-out at step %d: loss %.4f, answers: loss %.4f, right tokens %.2f%%" % (step, r["all"]["loss"], r["all"]["answer_loss"], 100 * r["all"]["answer_acc"]))
                t_print, n_print = time.time(), seen
    if cuda:
        torch.cuda.synchronize()
    dt = time.time() - t_train
    log("trained %d steps, %.1f M tokens in %.1f s (%.2f M tok/s), data wait %.1f s, padding %.2f%%%s" % (step, seen / 1e6, dt, seen / dt / 1e6, feed.wait, 100.0 * feed.pad / max(feed.n, 1), ", largest GPU memory %.1f GB" % (torch.cuda.max_memory_allocated() / 1e9) if cuda else ""))
    with torch.no_grad():       # from here on, the weights are the exported ones
        for w in net.parameters():
            w.copy_(w.to(bf).float())
    r = evaluate(net, ev, batches)
    log("held-out loss")
    show_eval(r)
    report.update(steps=step, tokens=seen, seconds=round(dt, 1), eval=r)
    total, sizes = export_model(net, out)
    export_tokenizer(out)
    jdump(os.path.join(out, "train_report.json"), report)
    log("exported to %s: %.1f MB in shards of %s bytes" % (out, total / 1e6, sizes))
    if args.pack:
        pack_dir(out, args.pack)

    def time_left():
        return 60 if args.smoke else T0 + args.deadline - time.time()
    if args.heads:
        s = 60 if args.smoke else min(args.heads_minutes * 60, time_left() - 40)
        if s > 8:
            try:
                train_heads(net, feed, dev, out, s, 20 if args.smoke else 0, ev, batches, assistant_id, report, blk, args.medusa_heads)
            except Exception:
                log("THE HEADS FAILED\n" + traceback.format_exc())
            jdump(os.path.join(out, "train_report.json"), report)
        else:
            log("no time left for the heads")
    stop.set()
    feed.stop = True
    if args.pack and args.heads:
        pack_dir(out, args.pack)
    try:
        verify(net, out, enc, ev, dev, time_left, report, args.smoke)
    except Exception:
        log("THE CHECK FAILED\n" + traceback.format_exc())
    jdump(os.path.join(out, "train_report.json"), report)
    for p in ps:
        p.terminate()
    if os.path.exists(tok_path + ".slow"):
        os.remove(tok_path + ".slow")
    if args.pack:
        pack_dir(out, args.pack)
    log("done")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
