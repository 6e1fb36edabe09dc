// Attention by flash_attn_ext: the caches, queries and sinks of `moiety bench --op attention`, number for number.
#include "peer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "bench/rig/random.h"

namespace {

// Of bench_attention.c: copies of the caches.
constexpr double COLD_BYTES = double(uint64_t(1) << 30);
constexpr int MIN_COPIES = 2, MAX_COPIES = 512, MAX_PROMPTS = 8;
// Of rig/attention.c: rows of large caches are dealt from a pool.
constexpr int MAX_DIM = 1024, POOL_ROWS = 2048, DEAL_ABOVE = 32768;

struct Shape {
  std::string preset, kind;
  int heads, kv_heads, k_dim, v_dim, window, chunk;
  float scale, softcap;
  bool sinks, v_in_k;
  int sequences, rows, kv; // rows are the last ones of the keys

  // The keys low <= j < high that row r of a sequence sees.
  void sees(int r, int *low, int *high) const {
    const int p = kv - rows + r;
    *high = p + 1;
    *low = window ? std::max(0, p - window + 1) : 0;
    if (chunk) *low = std::max(*low, p / chunk * chunk);
  }
  // The first key that any row sees: caches hold those from it on.
  int first() const {
    int low, high, least = kv;
    for (int r = 0; r < rows; r++) {
      sees(r, &low, &high);
      least = std::min(least, low);
    }
    return least;
  }
  int keys() const { return kv - first(); }
  double seen() const {
    double all = 0;
    for (int r = 0, low, high; r < rows; r++) {
      sees(r, &low, &high);
      all += high - low;
    }
    return all * sequences;
  }
};

// Keys or values of all sequences, as they lie: [sequence, key, KV head, element].
struct Cache {
  ggml_type type;
  int dim, kv_heads, keys;
  size_t row;
  std::vector<char> bytes;

  Cache(const Shape &s, ggml_type t, bool values)
      : type(t), dim(values ? s.v_dim : s.k_dim), kv_heads(s.kv_heads), keys(s.keys()), row(ggml_row_size(t, dim)),
        bytes(row * kv_heads * keys * s.sequences) {
    const int low = s.first();
    const bool dealt = int64_t(s.sequences) * keys * kv_heads > DEAL_ABOVE;
    std::vector<char> pool(dealt ? row * POOL_ROWS : 0);
    for (int i = 0; dealt && i < POOL_ROWS; i++) draw(uint64_t(i) * kv_heads, values, &pool[i * row]);
    char *to = bytes.data();
    for (int q = 0; q < s.sequences; q++)
      for (int j = low; j < s.kv; j++)
        for (int h = 0; h < kv_heads; h++, to += row) {
          const uint64_t at = (uint64_t(q) << 32 | uint64_t(j)) * kv_heads + h;
          if (dealt) std::memcpy(to, &pool[moi_random_below(values, at, POOL_ROWS) * row], row);
          else draw(at, values, to);
        }
  }

  void draw(uint64_t at, bool values, char *to) const {
    float x[MAX_DIM];
    for (int i = 0; i < dim; i++) x[i] = moi_random_normal(values, at * MAX_DIM + i);
    ggml_quantize_chunk(type, x, to, 0, 1, dim, nullptr);
  }
  std::vector<float> numbers(int sequence, int key, int head) const {
    std::vector<float> out(dim);
    const char *from = &bytes[((size_t(sequence) * keys + key) * kv_heads + head) * row];
    if (const auto to_float = ggml_get_type_traits(type)->to_float) to_float(from, out.data(), dim);
    else std::memcpy(out.data(), from, row);
    return out;
  }
};

// The numbers of a shape in a type: every copy holds them.
struct Operands {
  Shape s;
  Cache k;
  std::unique_ptr<Cache> v; // none where values lie in keys
  std::vector<float> q, sinks; // q: [sequence, row, head, element]
  std::vector<ggml_fp16_t> mask; // [row, key]; empty where all rows see all keys

  Operands(const Shape &shape, ggml_type type) : s(shape), k(s, type, false) {
    if (!s.v_in_k) v.reset(new Cache(s, type, true));
    const float gain = 2 / (s.scale * std::sqrt(float(s.k_dim)));
    for (int r = 0; r < s.sequences * s.rows; r++)
      for (int h = 0; h < s.heads; h++)
        for (int i = 0; i < s.k_dim; i++)
          q.push_back(ggml_bf16_to_fp32(
              ggml_fp32_to_bf16(gain * moi_random_normal(uint64_t(r) * s.heads + h, uint64_t(i)))));
    for (int h = 0; h < s.heads && s.sinks; h++) sinks.push_back(-1 + 0.75f * float(h % 7));
    if (s.seen() == double(s.sequences) * s.rows * s.keys()) return;
    for (int r = 0, low, high; r < s.rows; r++) {
      s.sees(r, &low, &high);
      for (int j = s.first(); j < s.kv; j++)
        mask.push_back(ggml_fp32_to_fp16(j >= low && j < high ? 0.0f : -INFINITY));
    }
  }

  double bytes() const { // as bench_attention.c counts them: queries and output of bf16
    const double token = double(s.kv_heads) * (k.row + (v ? v->row : 0));
    return s.sequences * (s.keys() * token + 2.0 * s.rows * s.heads * (s.k_dim + s.v_dim));
  }
  double flops() const { return 2.0 * s.seen() * s.heads * (s.k_dim + s.v_dim); }

  // Row r of a sequence and a head in fp64.
  std::vector<double> truth(int sequence, int r, int head) const {
    int low, high;
    s.sees(r, &low, &high);
    const int kv_head = head / (s.heads / s.kv_heads), first = s.first();
    const float *query = &q[((size_t(sequence) * s.rows + r) * s.heads + head) * s.k_dim];
    std::vector<double> logits, out(s.v_dim);
    double most = s.sinks ? double(sinks[head]) : -INFINITY, sum = 0;
    for (int j = low; j < high; j++) {
      const std::vector<float> key = k.numbers(sequence, j - first, kv_head);
      double dot = 0;
      for (int i = 0; i < s.k_dim; i++) dot += double(query[i]) * key[i];
      dot *= s.scale;
      if (s.softcap > 0) dot = s.softcap * std::tanh(dot / s.softcap);
      logits.push_back(dot);
      most = std::max(most, dot);
    }
    if (s.sinks) sum = std::exp(sinks[head] - most);
    for (int j = low; j < high; j++) {
      const double p = std::exp(logits[j - low] - most);
      const std::vector<float> value = (v ? *v : k).numbers(sequence, j - first, kv_head);
      sum += p;
      for (int i = 0; i < s.v_dim; i++) out[i] += p * value[i];
    }
    for (double &x : out) x /= sum;
    return out;
  }
};

// A copy's tensors: what lies in memory, and the graph over it.
struct Copy {
  ggml_tensor *q, *k, *v, *out;
  Owned<ggml_context> ctx;
  ggml_cgraph *graph;

  Copy(const Operands &o, ggml_context *memory)
      : q(ggml_new_tensor_4d(memory, GGML_TYPE_F32, o.s.k_dim, o.s.heads, o.s.rows, o.s.sequences)),
        k(cache(memory, o.k, o.s.sequences)), v(o.v ? cache(memory, *o.v, o.s.sequences) : nullptr) {}

  static ggml_tensor *cache(ggml_context *c, const Cache &from, int sequences) {
    return ggml_new_tensor_4d(c, from.type, from.dim, from.kv_heads, from.keys, sequences);
  }
  void build(const Operands &o, ggml_tensor *mask, ggml_tensor *sinks) {
    ctx = context(8, 1);
    ggml_context *c = ctx.get();
    ggml_tensor *values = v;
    if (!values) // the first elements of a key
      values = ggml_view_4d(c, k, o.s.v_dim, k->ne[1], k->ne[2], k->ne[3], k->nb[1], k->nb[2], k->nb[3], 0);
    const auto heads_last = [c](ggml_tensor *t) { return ggml_permute(c, t, 0, 2, 1, 3); };
    out = ggml_flash_attn_ext(c, heads_last(q), heads_last(k), heads_last(values), mask, o.s.scale, 0, o.s.softcap);
    if (sinks) ggml_flash_attn_ext_add_sinks(out, sinks);
    graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, out);
  }
  void fill(const Operands &o) const {
    ggml_backend_tensor_set(q, o.q.data(), 0, o.q.size() * 4);
    ggml_backend_tensor_set(k, o.k.bytes.data(), 0, o.k.bytes.size());
    if (v) ggml_backend_tensor_set(v, o.v->bytes.data(), 0, o.v->bytes.size());
  }
  // How far the last result is off, of its norm: some rows and heads in fp64.
  double error(const Operands &o) const {
    const Shape &s = o.s;
    std::vector<float> result(size_t(s.v_dim) * s.heads * s.rows * s.sequences);
    ggml_backend_tensor_get(out, result.data(), 0, result.size() * 4);
    double worst = 0;
    for (int seq : std::set<int>{0, s.sequences - 1})
      for (int r : std::set<int>{0, s.rows / 2, s.rows - 1})
        for (int h : std::set<int>{0, s.heads / 2, s.heads - 1}) {
          const float *at = &result[((size_t(seq) * s.rows + r) * s.heads + h) * s.v_dim];
          worst = std::max(worst, distance(std::vector<double>(at, at + s.v_dim), o.truth(seq, r, h)));
        }
    return worst;
  }
};

void measure(const Engine &e, const Shape &s, ggml_type type, const std::string &name,
             Results *results) {
  const Operands numbers(s, type);
  size_t free = 0, total = 0;
  ggml_backend_dev_memory(e.device, &free, &total);
  const double bytes = numbers.bytes();
  const int n = int(std::min({std::floor(COLD_BYTES / bytes) + 1, std::floor(double(free) / 2 / bytes),
                              double(s.rows > 1 ? MAX_PROMPTS : MAX_COPIES)}));
  if (n < MIN_COPIES) throw LeftOut("two copies of the cache do not fit");
  Owned<ggml_context> memory = context(size_t(3 * n + 2));
  std::vector<Copy> copies;
  std::vector<ggml_cgraph *> graphs;
  for (int i = 0; i < n; i++) copies.emplace_back(numbers, memory.get());
  ggml_tensor *mask = nullptr, *sinks = nullptr;
  if (!numbers.mask.empty()) mask = ggml_new_tensor_2d(memory.get(), GGML_TYPE_F16, s.keys(), s.rows);
  if (s.sinks) sinks = ggml_new_tensor_1d(memory.get(), GGML_TYPE_F32, s.heads);
  Owned<ggml_backend_buffer> buffer(ggml_backend_alloc_ctx_tensors(memory.get(), e.backend));
  if (!buffer) throw LeftOut("the caches do not fit");
  for (Copy &c : copies) {
    c.build(numbers, mask, sinks);
    c.fill(numbers);
    graphs.push_back(c.graph);
  }
  if (mask) ggml_backend_tensor_set(mask, numbers.mask.data(), 0, numbers.mask.size() * 2);
  if (sinks) ggml_backend_tensor_set(sinks, numbers.sinks.data(), 0, numbers.sinks.size() * 4);
  Calls calls(e, graphs);
  // few rows over a cache of f16 are summed in f16: up to 1.1 % off with 4096 keys
  Row row = {name,
             type,
             bytes,
             numbers.flops(),
             0,
             type == GGML_TYPE_F16 ? 0.02 : tolerance_of(type),
             {{"rows", s.rows}, {"sequences", s.sequences}, {"kv_len", s.kv}, {"page_size", 0}},
             {{"kind", s.kind}, {"kv_format", ggml_type_name(type)}}};
  for (int i : {0, n - 1}) {
    calls.run(i);
    row.error = std::max(row.error, copies[i].error(numbers));
  }
  results->add(row, {name}, calls, false);
}

Shape shape_of(const std::string &preset, const cJSON *kind) {
  return {preset,
          text_of(kind, "kind"),
          int(number_of(kind, "heads")),
          int(number_of(kind, "kv_heads")),
          int(number_of(kind, "head_dim")),
          int(number_of(kind, "v_head_dim")),
          int(number_of(kind, "window")),
          int(number_of(kind, "chunk")),
          float(number_of(kind, "scale")),
          float(number_of(kind, "softcap")),
          truth_of(kind, "sinks"),
          truth_of(kind, "v_in_k"),
          0,
          0,
          0};
}

} // namespace

// Prompts and decodes of each kind, as bench.cc lists them.
void attention(const Options &o, const Engine &e, const cJSON *preset, Results *results) {
  const cJSON *kind;
  const std::string model = text_of(preset, "name");
  cJSON_ArrayForEach(kind, cJSON_GetObjectItemCaseSensitive(preset, "attention")) {
    Shape s = shape_of(model, kind);
    std::vector<Shape> shapes;
    const auto shape = [&](int sequences, int rows, int kv) {
      s.sequences = sequences, s.rows = rows, s.kv = kv;
      shapes.push_back(s);
    };
    for (int n : numbers_of("--tokens", o.tokens))
      if (n > 16 && s.kind != "mla-absorbed") shape(1, n, n);
    for (int n : numbers_of("--kv", o.kv))
      for (int batch : numbers_of("--batch", o.batch))
        if (s.kind != "mla") shape(batch, 1, n);
    for (const std::string &format : split(o.kv_format))
      for (const Shape &one : shapes) {
        const std::string name = "attention/" + e.who + "/flash_attn_ext/" + format + "/" + model +
                                 "/tokens:" + std::to_string(one.sequences * one.rows) + "/kind:" + one.kind +
                                 "/sequences:" + std::to_string(one.sequences) + "/kv_len:" + std::to_string(one.kv);
        try {
          const ggml_type type = type_of("--kv-format", format, e.cpu);
          if (one.k_dim % ggml_blck_size(type) || one.v_dim % ggml_blck_size(type))
            throw LeftOut("heads are no whole blocks of it");
          if (number_of(kind, "temperature_floor") > 0 && one.kv > number_of(kind, "temperature_floor"))
            throw LeftOut("flash_attn_ext has no temperature of queries, which is not 1 there");
          measure(e, one, type, name, results);
        } catch (const LeftOut &why) {
          std::printf("%s: left out: %s\n", name.c_str(), why.what());
        } catch (const std::runtime_error &why) {
          results->fail(name, why.what());
        }
      }
  }
}
