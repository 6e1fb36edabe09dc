// MoE feed-forward layers by mul_mat_id: the tokens, experts' ids and weights of routing of `moiety bench --op experts`, number
// for number, other random weights.
#include "peer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "bench/rig/random.h"

namespace {

// Of bench_layer.c: copies of the weights.
constexpr double COLD_BYTES = double(uint64_t(2) << 30);
constexpr int MAX_SETS = 16;
constexpr int POOL = 251; // rows that matrices are made of, each expert's from another one on

struct Shape {
  int hidden, inter, experts, top_k;
  std::string activation, weight_on;
  float alpha, limit; // of the activation
  bool gated, biases;
};

Shape shape_of(const Options &o, const cJSON *p) {
  Shape s = {int(number_of(p, "hidden")), int(number_of(p, "intermediate")), int(number_of(p, "experts")),
             int(number_of(p, "top_k")),  text_of(p, "activation"),          text_of(p, "weight_on"),
             float(number_of(p, "act_alpha")), float(number_of(p, "act_limit")), truth_of(p, "gated"),
             !text_of(p, "bias").empty()};
  const std::set<std::string> known = {"swiglu", "swiglu_oai", "geglu_tanh", "relu2"};
  if (!known.count(s.activation)) throw LeftOut("ggml has no activation " + s.activation);
  if (s.gated == (s.activation == "relu2")) throw LeftOut("the gate is not the activation's usual one");
  if (number_of(p, "identity_experts") > 0) throw LeftOut("mul_mat_id has no experts that are the identity");
  if (s.weight_on == "input" && s.top_k > 1) throw LeftOut("weights on the input of several experts are not tried here");
  if (o.experts) s.experts = std::min(s.experts, o.experts);
  if (s.top_k > s.experts) die("--experts: " + text_of(p, "name") + " chooses " + std::to_string(s.top_k) + " of them");
  return s;
}

// Rows of weights in a type, and their values.
struct Pool {
  size_t row_bytes;
  int k;
  std::vector<char> rows;
  std::vector<float> values;

  Pool(ggml_type type, int columns, uint64_t seed)
      : row_bytes(ggml_row_size(type, columns)), k(columns), rows(row_bytes * POOL), values(size_t(k) * POOL) {
    for (int r = 0; r < POOL; r++)
      for (int i = 0; i < k; i++) values[size_t(r) * k + i] = moi_random_normal(seed + r, i) / std::sqrt(float(k));
    ggml_quantize_chunk(type, values.data(), rows.data(), 0, POOL, k, nullptr);
    const auto to_float = ggml_get_type_traits(type)->to_float;
    for (int r = 0; r < POOL && to_float; r++) to_float(&rows[r * row_bytes], &values[size_t(r) * k], k);
  }
  std::vector<double> times(const std::vector<double> &x) const {
    std::vector<double> out(POOL);
    for (int r = 0; r < POOL; r++)
      for (int i = 0; i < k; i++) out[r] += double(values[size_t(r) * k + i]) * x[i];
    return out;
  }
};

// The pool's row that is row r of expert e in matrix m (gate, up, down) of a set.
int pool_row(int set, int m, int e, int r) { return (r + 7 * e + 29 * m + 83 * set) % POOL; }
// And that row's bias, as large as moiety's.
float bias_of(int set, int m, int e, int r) {
  return 0.5f * moi_random_normal(31 + uint64_t(m), (uint64_t(set) << 40) + (uint64_t(e) << 20) + uint64_t(r));
}

struct Layer {
  struct Set {
    ggml_tensor *m[3], *bias[3]; // gate, up, down
  };
  Shape s;
  ggml_type type;
  double expert_bytes;
  std::vector<Set> sets;
  Pool wide, narrow; // rows of gate and up, and of down
  Owned<ggml_context> ctx, bias_ctx;
  Owned<ggml_backend_buffer> buffer, bias_buffer;

  Layer(const Shape &shape, ggml_type t, const Engine &e)
      : s(shape), type(t), wide(t, s.hidden, 1), narrow(t, s.inter, 100003) {
    const int first = s.gated ? 0 : 1, matrices = 3 - first;
    expert_bytes = double(matrices - 1) * s.inter * wide.row_bytes + 1.0 * s.hidden * narrow.row_bytes;
    if (s.biases) expert_bytes += 2.0 * (double(matrices - 1) * s.inter + s.hidden); // of bf16, as moiety has them
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(e.device, &free, &total);
    const double each = expert_bytes * s.experts, room = std::floor(double(free) / 2 / each);
    const int n = int(std::min({std::ceil(COLD_BYTES / each), room, double(MAX_SETS)}));
    if (n < 1)
      throw LeftOut("one copy of the layer is " + std::to_string(each / 1e9) +
                    " GB, half of the device's free memory is less");
    ctx = context(size_t(3 * n));
    bias_ctx = context(size_t(3 * n));
    for (int i = 0; i < n; i++) {
      Set set = {};
      for (int m = first; m < 3; m++) {
        const int in = m < 2 ? s.hidden : s.inter, out = m < 2 ? s.inter : s.hidden;
        set.m[m] = ggml_new_tensor_3d(ctx.get(), type, in, out, s.experts);
        if (s.biases) set.bias[m] = ggml_new_tensor_2d(bias_ctx.get(), GGML_TYPE_F32, out, s.experts);
      }
      sets.push_back(set);
    }
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), e.weights));
    if (s.biases) bias_buffer.reset(ggml_backend_alloc_ctx_tensors(bias_ctx.get(), e.backend));
    if (!buffer || (s.biases && !bias_buffer)) throw LeftOut("the weights do not fit");
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (int i = 0; i < n; i++)
      for (int m = first; m < 3; m++) fill(i, m, e.repack);
  }

  void fill(int set, int m, bool repack) const {
    ggml_tensor *w = sets[set].m[m], *b = sets[set].bias[m];
    if (repack && !w->extra) throw LeftOut("this CPU has no interleaved layout of it");
    const Pool &pool = m < 2 ? wide : narrow;
    std::vector<char> bytes(ggml_nbytes(w));
    std::vector<float> biases;
    char *to = bytes.data();
    for (int e = 0; e < s.experts; e++)
      for (int r = 0; r < w->ne[1]; r++, to += pool.row_bytes) {
        std::memcpy(to, &pool.rows[pool_row(set, m, e, r) * pool.row_bytes], pool.row_bytes);
        if (b) biases.push_back(bias_of(set, m, e, r));
      }
    ggml_backend_tensor_set(w, bytes.data(), 0, bytes.size());
    if (b) ggml_backend_tensor_set(b, biases.data(), 0, biases.size() * 4);
  }
};

double activated(const Shape &s, double g, double u) {
  if (s.activation == "relu2") return u > 0 ? u * u : 0;
  if (s.activation == "geglu_tanh")
    return 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g))) * u;
  if (s.limit > 0) {
    g = std::min(g, double(s.limit));
    u = std::max(-double(s.limit), std::min(u, double(s.limit)));
  }
  if (s.activation == "swiglu_oai") return g / (1 + std::exp(-double(s.alpha) * g)) * (u + 1);
  return g / (1 + std::exp(-g)) * u;
}

// ---- calls: the numbers of bench/rig/operands.c

struct Variant {
  int set;
  std::vector<float> x, weights;
  std::vector<int32_t> ids;
  double bytes;
  ggml_tensor *tx, *tids, *tweights, *out;
  Owned<ggml_context> ctx;
  ggml_cgraph *graph;

  Variant(const Layer &l, int tokens, int v, ggml_context *inputs)
      : set(v % int(l.sets.size())), x(activations(tokens, l.s.hidden, (10 + uint64_t(v)) * 5 + 1)) {
    const Shape &s = l.s;
    const uint64_t seed = (10 + uint64_t(v)) * 5;
    for (int t = 0; t < tokens; t++) {
      uint64_t draw = uint64_t(t) << 20;
      for (const size_t first = ids.size(); ids.size() < first + s.top_k;) {
        const int32_t e = int32_t(moi_random_below(seed + 2, draw++, uint32_t(s.experts)));
        if (std::find(ids.begin() + first, ids.end(), e) == ids.end()) ids.push_back(e);
      }
    }
    for (size_t i = 0; i < ids.size(); i++)
      weights.push_back((0.25f + moi_random_uniform(seed + 3, i)) / std::sqrt(float(s.top_k)));
    // as bench_layer.c counts them: activations of bf16
    bytes = l.expert_bytes * double(std::set<int32_t>(ids.begin(), ids.end()).size()) + 4.0 * tokens * s.hidden;
    tx = ggml_new_tensor_3d(inputs, GGML_TYPE_F32, s.hidden, 1, tokens);
    tids = ggml_new_tensor_2d(inputs, GGML_TYPE_I32, s.top_k, tokens);
    tweights = ggml_new_tensor_3d(inputs, GGML_TYPE_F32, 1, s.top_k, tokens);
    build(l, tokens);
  }

  void build(const Layer &l, int tokens) {
    const Shape &s = l.s;
    ctx = context(size_t(16 + 2 * s.top_k), 1);
    ggml_context *c = ctx.get();
    const Layer::Set &w = l.sets[set];
    const auto product = [&](int m, ggml_tensor *in) {
      ggml_tensor *y = ggml_mul_mat_id(c, w.m[m], in, tids);
      return w.bias[m] ? ggml_add_id(c, y, w.bias[m], tids) : y;
    };
    ggml_tensor *in = s.weight_on == "input" ? ggml_mul(c, tx, tweights) : tx;
    ggml_tensor *up = product(1, in), *gate = s.gated ? product(0, in) : nullptr, *mid;
    if (s.activation == "relu2") mid = ggml_sqr(c, ggml_relu(c, up));
    else if (s.activation == "geglu_tanh") mid = ggml_geglu_split(c, gate, up);
    else if (s.activation == "swiglu_oai") mid = ggml_swiglu_oai(c, gate, up, s.alpha, s.limit);
    else if (s.limit > 0) mid = ggml_swiglu_clamp(c, gate, up, s.limit);
    else mid = ggml_swiglu_split(c, gate, up);
    if (s.weight_on == "activation") mid = ggml_mul(c, mid, tweights);
    ggml_tensor *down = product(2, mid);
    if (s.weight_on == "output") down = ggml_mul(c, down, tweights);
    out = nullptr;
    for (int k = 0; k < s.top_k; k++) {
      ggml_tensor *slot = ggml_view_2d(c, down, s.hidden, tokens, down->nb[2], k * down->nb[1]);
      out = out ? ggml_add(c, out, slot) : slot;
    }
    if (s.top_k == 1) out = ggml_cont(c, out);
    graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, out);
  }

  void fill() const {
    ggml_backend_tensor_set(tx, x.data(), 0, x.size() * 4);
    ggml_backend_tensor_set(tids, ids.data(), 0, ids.size() * 4);
    ggml_backend_tensor_set(tweights, weights.data(), 0, weights.size() * 4);
  }

  // How far the last result is off, of its norm: the first token, one amid, and the last in fp64.
  double error(const Layer &l, int tokens) const {
    const Shape &s = l.s;
    std::vector<float> result(size_t(tokens) * s.hidden);
    ggml_backend_tensor_get(out, result.data(), 0, result.size() * 4);
    const auto bias = [&](int m, int e, int r) { return s.biases ? double(bias_of(set, m, e, r)) : 0; };
    double worst = 0;
    for (int t : std::set<int>{0, tokens / 2, tokens - 1}) {
      std::vector<double> truth(s.hidden), mid(s.inter);
      const std::vector<double> row(&x[size_t(t) * s.hidden], &x[size_t(t) * s.hidden] + s.hidden),
          wide = l.wide.times(row);
      for (int k = 0; k < s.top_k; k++) {
        const int e = ids[size_t(t) * s.top_k + k];
        const double w = weights[size_t(t) * s.top_k + k], in = s.weight_on == "input" ? w : 1;
        for (int i = 0; i < s.inter; i++) {
          mid[i] = activated(s, in * wide[pool_row(set, 0, e, i)] + bias(0, e, i),
                             in * wide[pool_row(set, 1, e, i)] + bias(1, e, i));
          if (s.weight_on == "activation") mid[i] *= w;
        }
        const std::vector<double> y = l.narrow.times(mid);
        for (int h = 0; h < s.hidden; h++)
          truth[h] += (s.weight_on == "output" ? w : 1) * (y[pool_row(set, 2, e, h)] + bias(2, e, h));
      }
      const std::vector<double> got(&result[size_t(t) * s.hidden], &result[size_t(t) * s.hidden] + s.hidden);
      worst = std::max(worst, distance(got, truth));
    }
    return worst;
  }
};

// One shape of calls: the names of its rows, which differ in the format that they stand beside.
void measure(const Engine &e, const Layer &l, int tokens, const std::vector<std::string> &names,
             Results *results) {
  const int n = calls_for(tokens, int(l.sets.size()));
  Owned<ggml_context> inputs = context(size_t(3 * n));
  std::vector<Variant> variants;
  std::vector<ggml_cgraph *> graphs;
  for (int v = 0; v < n; v++) variants.emplace_back(l, tokens, v, inputs.get());
  for (const Variant &v : variants) graphs.push_back(v.graph);
  Owned<ggml_backend_buffer> buffer(ggml_backend_alloc_ctx_tensors(inputs.get(), e.backend));
  if (!buffer) throw LeftOut("the activations do not fit");
  Calls calls(e, graphs);
  Row row = {"", l.type, 0, 2.0 * (l.s.gated ? 3 : 2) * l.s.hidden * l.s.inter * l.s.top_k * tokens, 0,
             tolerance_of(l.type), {}, {}};
  for (const Variant &v : variants) {
    v.fill();
    row.bytes += v.bytes / n;
  }
  for (int i : {0, n - 1}) {
    calls.run(i);
    row.error = std::max(row.error, variants[i].error(l, tokens));
  }
  results->add(row, names, calls, true);
}

} // namespace

void experts(const Options &o, const Engine &e, const cJSON *preset, Results *results) {
  const std::vector<std::string> formats = split(o.format.empty() ? "q4_k,q8_0,bf16" : o.format);
  std::vector<ggml_type> types; // each once, as they are asked for
  for (const std::string &f : formats) {
    const ggml_type t = type_of("--format", f, e.cpu);
    if (std::find(types.begin(), types.end(), t) == types.end()) types.push_back(t);
  }
  for (ggml_type type : types) {
    const std::string model = text_of(preset, "name");
    try {
      const Shape s = shape_of(o, preset);
      if (s.hidden % ggml_blck_size(type) || s.inter % ggml_blck_size(type))
        throw LeftOut("rows are no whole blocks of it");
      if (ggml_quantize_requires_imatrix(type)) throw LeftOut("to make weights of it takes an importance matrix");
      const Layer layer(s, type, e);
      for (int n : numbers_of("--tokens", o.tokens)) {
        std::vector<std::string> names;
        for (const std::string &f : formats)
          if (type_of("--format", f, e.cpu) == type)
            names.push_back("experts/" + e.who + "/mul_mat_id/" + f + "/" + model + "/tokens:" + std::to_string(n));
        try {
          measure(e, layer, n, names, results);
        } catch (const LeftOut &) {
          throw;
        } catch (const std::runtime_error &why) {
          for (const std::string &name : names) results->fail(name, why.what());
        }
      }
    } catch (const LeftOut &why) {
      std::printf("experts/%s/%s/%s: left out: %s\n", e.who.c_str(), ggml_type_name(type), model.c_str(), why.what());
    }
  }
}
