// Routing from logits by the graph that llama.cpp makes of it, on the logits and biases of `moiety bench --op select`, number for
// number. Ids and weights alone: no counts, offsets or permutation.
#include "peer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <set>

#include "bench/rig/random.h"

namespace {

constexpr double COLD_BYTES = double(uint64_t(2) << 30); // of bench_layer.c: each copy of a layer has its own biases
constexpr int MAX_SETS = 16;
constexpr float LEAST_SUM = 6.103515625e-5f; // what llama.cpp takes for a sum of weights that is less

struct Rule {
  int experts, top_k, groups, top_groups;
  std::string score, renorm;
  double eps, scale;
  bool bias, select_bias;
};

Rule rule_of(const cJSON *preset) {
  const cJSON *p = cJSON_GetObjectItemCaseSensitive(preset, "route");
  if (!p) die("--presets: no rules of routing in them");
  Rule r = {int(number_of(preset, "experts")) + int(number_of(preset, "identity_experts")),
            int(number_of(preset, "top_k")),
            int(number_of(p, "groups")),
            int(number_of(p, "top_groups")),
            text_of(p, "score"),
            text_of(p, "renorm"),
            number_of(p, "renorm_eps"),
            number_of(p, "scale"),
            truth_of(p, "bias"),
            truth_of(p, "select_bias")};
  const std::set<std::string> known = {"softmax", "sigmoid", "sqrt_softplus", "topk_softmax", "topk_sigmoid"};
  if (!known.count(r.score)) throw LeftOut("no graph of " + r.score + " here");
  if (r.groups > 1 && text_of(p, "group_score") != "top2_sum") throw LeftOut("groups are scored by their two best alone");
  if (number_of(p, "logit_softcap") > 0 || truth_of(p, "expert_scale")) throw LeftOut("no graph of its rule here");
  return r;
}

bool of_logits(const Rule &r) { return r.score == "topk_softmax" || r.score == "topk_sigmoid"; }

// By which of ggml's ops the largest are found: indices of the k largest of each row.
using TopK = ggml_tensor *(*)(ggml_context *, ggml_tensor *, int);

struct Variant {
  const Rule &r;
  int tokens;
  std::vector<float> logits, bias, select_bias;
  ggml_tensor *tlogits, *tbias = nullptr, *tselect = nullptr, *ids, *weights;
  Owned<ggml_context> ctx;
  ggml_cgraph *graph;

  Variant(const Rule &rule, int n, int v, int sets, ggml_context *inputs)
      : r(rule), tokens(n), logits(activations(n, rule.experts, (500 + uint64_t(v)) * 5 + 1)) {
    const uint64_t seed = (uint64_t(v % sets) + 77) * 7;
    for (int i = 0; i < r.experts; i++) {
      bias.push_back(ggml_bf16_to_fp32(ggml_fp32_to_bf16(0.5f * moi_random_normal(seed + 3, i))));
      select_bias.push_back(0.125f + 0.1f * moi_random_normal(seed + 4, i));
    }
    tlogits = ggml_new_tensor_2d(inputs, GGML_TYPE_F32, r.experts, n);
    if (r.bias) tbias = ggml_new_tensor_1d(inputs, GGML_TYPE_F32, r.experts);
    if (r.select_bias) tselect = ggml_new_tensor_1d(inputs, GGML_TYPE_F32, r.experts);
  }

  void build(TopK top_k) {
    ctx = context(64, 1);
    ggml_context *c = ctx.get();
    ggml_tensor *l = tbias ? ggml_add(c, tlogits, tbias) : tlogits, *scores = l;
    if (r.score == "softmax") scores = ggml_soft_max(c, l);
    else if (r.score == "sigmoid" || r.score == "topk_sigmoid") scores = ggml_sigmoid(c, l);
    else if (r.score == "sqrt_softplus") scores = ggml_sqrt(c, ggml_softplus(c, l));
    ggml_tensor *by = of_logits(r) ? l : scores;
    if (tselect) by = ggml_add(c, by, tselect);
    if (r.groups > 1) by = best_groups(by, top_k);
    ids = top_k(c, by, r.top_k);
    ggml_tensor *w = ggml_get_rows(c, ggml_reshape_3d(c, scores, 1, r.experts, tokens), ids);
    w = ggml_reshape_2d(c, w, r.top_k, tokens);
    if (r.score == "topk_softmax") w = ggml_soft_max(c, w);
    if (!r.renorm.empty()) w = ggml_div(c, w, ggml_clamp(c, ggml_sum_rows(c, w), LEAST_SUM, INFINITY));
    if (r.scale != 1) w = ggml_scale(c, w, float(r.scale));
    weights = w;
    graph = ggml_new_graph(c);
    ggml_set_output(ids); // its memory is not another node's afterwards
    ggml_set_output(weights);
    ggml_build_forward_expand(graph, weights);
  }

  // Where a group is not among the best by the sum of its two largest, -inf.
  ggml_tensor *best_groups(ggml_tensor *by, TopK top_k) {
    ggml_context *c = ctx.get();
    const int each = r.experts / r.groups;
    ggml_tensor *groups = ggml_reshape_3d(c, by, each, r.groups, tokens), *two = top_k(c, groups, 2);
    two = ggml_get_rows(c, ggml_reshape_4d(c, groups, 1, each, r.groups, tokens), two);
    ggml_tensor *sums = ggml_sum_rows(c, ggml_reshape_3d(c, two, 2, r.groups, tokens));
    ggml_tensor *best = top_k(c, ggml_reshape_2d(c, sums, r.groups, tokens), r.top_groups);
    ggml_tensor *kept = ggml_get_rows(c, groups, best);
    return ggml_reshape_2d(c, ggml_set_rows(c, ggml_fill(c, groups, -INFINITY), kept, best), r.experts, tokens);
  }

  void fill() const {
    ggml_backend_tensor_set(tlogits, logits.data(), 0, logits.size() * 4);
    if (tbias) ggml_backend_tensor_set(tbias, bias.data(), 0, bias.size() * 4);
    if (tselect) ggml_backend_tensor_set(tselect, select_bias.data(), 0, select_bias.size() * 4);
  }

  // The scores of a token, and what they are chosen by, in fp64.
  void truth(int t, std::vector<double> *scores, std::vector<double> *by) const {
    std::vector<double> l(r.experts);
    for (int i = 0; i < r.experts; i++) l[i] = double(logits[size_t(t) * r.experts + i]) + (r.bias ? bias[i] : 0);
    const double most = *std::max_element(l.begin(), l.end());
    double sum = 0;
    *scores = l;
    for (double &s : *scores) {
      if (r.score == "softmax") sum += s = std::exp(s - most);
      else if (r.score == "sqrt_softplus") s = std::sqrt(std::log1p(std::exp(s)));
      else if (r.score != "topk_softmax") s = 1 / (1 + std::exp(-s));
    }
    for (double &s : *scores)
      if (r.score == "softmax") s /= sum;
    *by = of_logits(r) ? l : *scores;
    for (int i = 0; i < r.experts && r.select_bias; i++) (*by)[i] += select_bias[i];
    if (r.groups < 2) return;
    const int each = r.experts / r.groups;
    std::vector<double> groups;
    for (int g = 0; g < r.groups; g++) {
      std::vector<double> in(by->begin() + g * each, by->begin() + (g + 1) * each);
      std::sort(in.rbegin(), in.rend());
      groups.push_back(in[0] + in[1]);
    }
    std::vector<double> sorted = groups;
    std::sort(sorted.rbegin(), sorted.rend());
    for (int i = 0; i < r.experts; i++)
      if (groups[i / each] < sorted[r.top_groups - 1]) (*by)[i] = -INFINITY;
  }

  // How far weights are off, of their norm; another expert than the best is an error, but for a near tie.
  double error() const {
    std::vector<int32_t> chosen(size_t(tokens) * r.top_k);
    std::vector<float> got(chosen.size());
    ggml_backend_tensor_get(weights, got.data(), 0, got.size() * 4);
    for (int t = 0; t < tokens; t++) // the ids may be a view of a whole row
      ggml_backend_tensor_get(ids, &chosen[size_t(t) * r.top_k], size_t(t) * ids->nb[1], size_t(r.top_k) * 4);
    double worst = 0;
    for (int t = 0; t < tokens; t++) {
      std::vector<double> scores, by;
      truth(t, &scores, &by);
      const int32_t *mine = &chosen[size_t(t) * r.top_k];
      std::vector<double> sorted = by, result(got.begin() + size_t(t) * r.top_k, got.begin() + size_t(t + 1) * r.top_k), w;
      std::sort(sorted.rbegin(), sorted.rend());
      if (std::set<int32_t>(mine, mine + r.top_k).size() != size_t(r.top_k)) return INFINITY;
      double sum = 0;
      for (int k = 0; k < r.top_k; k++) {
        if (mine[k] < 0 || mine[k] >= r.experts || by[mine[k]] < sorted[r.top_k - 1] - 1e-6) return INFINITY;
        w.push_back(r.score == "topk_softmax" ? std::exp(scores[mine[k]] - sorted[0]) : scores[mine[k]]);
        sum += w.back();
      }
      if (r.score == "topk_softmax" || !r.renorm.empty())
        for (double &x : w) x /= sum;
      for (double &x : w) x *= r.scale;
      worst = std::max(worst, distance(result, w));
    }
    return worst;
  }
};

void measure(const Engine &e, const Rule &r, int tokens, int sets, TopK top_k,
             const std::vector<std::string> &names, Results *results) {
  const int n = calls_for(tokens, sets);
  Owned<ggml_context> inputs = context(size_t(3 * n));
  std::vector<Variant> variants;
  std::vector<ggml_cgraph *> graphs;
  for (int v = 0; v < n; v++) variants.emplace_back(r, tokens, v, sets, inputs.get());
  Owned<ggml_backend_buffer> buffer(ggml_backend_alloc_ctx_tensors(inputs.get(), e.backend));
  if (!buffer) throw LeftOut("the logits do not fit");
  for (Variant &v : variants) {
    v.build(top_k);
    v.fill();
    graphs.push_back(v.graph);
  }
  Calls calls(e, graphs);
  // as bench_layer.c counts them: logits of bf16
  Row row = {"", GGML_TYPE_F32, tokens * (2.0 * r.experts + 8.0 * r.top_k), 0, 0, 1e-4, {}, {}};
  for (int i : {0, n - 1}) {
    calls.run(i);
    row.error = std::max(row.error, variants[i].error());
  }
  results->add(row, names, calls, true);
}

} // namespace

void select(const Options &o, const Engine &e, const cJSON *preset, Results *results) {
  const std::string model = text_of(preset, "name"), formats = o.format.empty() ? text_of(preset, "format") : o.format;
  const double layer = number_of(preset, "layer_bytes");
  const int sets = int(std::max(1.0, std::min(std::ceil(COLD_BYTES / layer), double(MAX_SETS))));
  const std::pair<const char *, TopK> kernels[] = {{"argsort_top_k", ggml_argsort_top_k}, {"top_k", ggml_top_k}};
  for (int n : numbers_of("--tokens", o.tokens))
    for (const auto &kernel : kernels) {
      std::vector<std::string> names;
      for (const std::string &format : split(formats))
        names.push_back("select/" + e.who + "/" + kernel.first + "/" + format + "/" + model +
                        "/tokens:" + std::to_string(n));
      try {
        measure(e, rule_of(preset), n, sets, kernel.second, names, results);
      } catch (const LeftOut &why) {
        std::printf("%s: left out: %s\n", names[0].c_str(), why.what());
      } catch (const std::runtime_error &why) {
        for (const std::string &name : names) results->fail(name, why.what());
      }
    }
}
