// ggml's MoE feed-forward layer, through its public API, on the work of `moiety bench --op experts`: the same shapes, tokens,
// experts' ids and weights of routing, number for number; weights that are cold. Rows have the names and the JSON of
// moiety bench. docs/performance.md says how it is built and what is measured; --help lists the options.
#include <cjson/cJSON.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bench/rig/random.h"

namespace {

// Of bench_layer.c: copies of the weights.
constexpr double COLD_BYTES = double(uint64_t(2) << 30);
constexpr int MAX_SETS = 16;
constexpr int POOL = 251; // rows that matrices are made of, each expert's from another one on

struct Options {
  std::string preset = "qwen3-30b-a3b", op = "experts", format = "q4_k,q8_0,bf16", tokens = "1,8,64,512",
              device = "CPU";
  std::string presets, peaks, json, command = "ggml-peer";
  int threads = 0, experts = 0, repetitions = 3;
  double min_time = 0.2;
  bool repack = false;
};

struct LeftOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void die(const std::string &why, int status = 2) {
  std::fprintf(stderr, "ggml-peer: %s\n", why.c_str());
  std::exit(status);
}

struct Free {
  void operator()(ggml_context *c) const { ggml_free(c); }
  void operator()(ggml_backend_buffer *b) const { ggml_backend_buffer_free(b); }
  void operator()(ggml_backend *b) const { ggml_backend_free(b); }
  void operator()(ggml_gallocr *g) const { ggml_gallocr_free(g); }
  void operator()(cJSON *j) const { cJSON_Delete(j); }
};
template <class T> using Owned = std::unique_ptr<T, Free>;

Owned<ggml_context> context(size_t tensors, size_t graphs = 0) {
  return Owned<ggml_context>(
      ggml_init({ggml_tensor_overhead() * tensors + ggml_graph_overhead() * graphs, nullptr, true}));
}

std::vector<std::string> split(const std::string &list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

int number(const std::string &option, const std::string &text, int least = 1) {
  char *end;
  const long n = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || n < least || n > 1 << 20)
    die(option + ": '" + text + "' is no number of " + std::to_string(least) + " to 1048576");
  return int(n);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// ---- JSON

Owned<cJSON> parse(const std::string &text, const std::string &what) {
  Owned<cJSON> json(cJSON_Parse(text.c_str()));
  if (!json) die(what + ": not JSON");
  return json;
}

std::string read(FILE *file, const std::string &what) {
  if (!file) die(what + ": cannot be read");
  std::string out;
  char part[4096];
  for (size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) out.append(part, n);
  return out;
}

double number_of(const cJSON *object, const std::string &name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name.c_str());
  return cJSON_IsNumber(item) ? item->valuedouble : cJSON_IsString(item) ? std::atof(item->valuestring) : 0;
}

void put(cJSON *object, const char *name, const std::string &value) {
  cJSON_DeleteItemFromObjectCaseSensitive(object, name);
  cJSON_AddStringToObject(object, name, value.c_str());
}

// Rows as moiety bench writes them. peaks: a result of it on this machine, from the same run: of whose limits the fractions are.
class Results {
public:
  int failed = 0;

  Results(const Options &o, ggml_backend_dev_t device) : o_(o), rows_(cJSON_CreateArray()) {
    if (!o.peaks.empty()) {
      FILE *file = std::fopen(o.peaks.c_str(), "r");
      Owned<cJSON> ours = parse(read(file, o.peaks), o.peaks);
      std::fclose(file);
      context_.reset(cJSON_DetachItemFromObjectCaseSensitive(ours.get(), "context"));
      if (!cJSON_IsObject(context_.get())) die(o.peaks + ": no result of moiety bench");
    } else {
      context_.reset(cJSON_CreateObject());
      put(context_.get(), "moiety_version", "");
    }
    char date[40];
    const std::time_t now = std::time(nullptr);
    std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    put(context_.get(), "date", date);
    put(context_.get(), "command", o.command);
    put(context_.get(), "threads", std::to_string(o.threads));
    put(context_.get(), "ggml", std::string(ggml_version()) + " " + ggml_commit());
    put(context_.get(), "ggml_device", ggml_backend_dev_description(device));
    cJSON_DeleteItemFromObjectCaseSensitive(context_.get(), "layers");
    const std::string name = o.device.substr(0, o.device.find_first_of("0123456789"));
    prefix_ = name == "CPU" ? "" : name + "_";
    for (char &c : prefix_) c = char(std::tolower(c));
  }

  bool empty() const { return !cJSON_GetArraySize(rows_.get()); }
  double peak(const std::string &what) const { return number_of(context_.get(), prefix_ + "peak_" + what) * 1e9; }

  // The peak that a type's arithmetic is measured against: bench.cc's names of it.
  double compute(ggml_type type, std::string *label) const {
    const bool cpu = prefix_.empty();
#if defined(__x86_64__)
    const std::string integer = "of int8 VNNI";
#else
    const std::string integer = "of int8 SDOT";
#endif
    if (cpu && ggml_is_quantized(type) && peak("int8_gops") > 0) return *label = integer, peak("int8_gops");
    if ((!cpu || type == GGML_TYPE_BF16) && peak("bf16_gflops") > 0)
      return *label = cpu ? "of bf16" : "of bf16 mma", peak("bf16_gflops");
    return *label = "of f32 FMA", peak("f32_gflops");
  }

  void fail(const std::string &name, const std::string &why) {
    failed++;
    std::printf("%s: FAILED: %s\n", name.c_str(), why.c_str());
    cJSON *row = entry(name, 0);
    cJSON_AddBoolToObject(row, "error_occurred", 1);
    put(row, "error_message", why);
  }

  // times: of each repetition, of a call; bytes and flops of a call.
  void add(const std::string &name, ggml_type type, const std::vector<double> &times, double bytes, double flops,
           double error, double tolerance) {
    std::string label;
    const double read = peak("read_gbs"), ops = compute(type, &label);
    std::vector<double> sorted = times;
    std::sort(sorted.begin(), sorted.end());
    const double median = sorted[sorted.size() / 2];
    for (size_t i = 0; i <= times.size(); i++) {
      const double t = i < times.size() ? times[i] : median;
      const double memory = read > 0 ? bytes / t / read : 0, compute = ops > 0 ? flops / t / ops : 0;
      if (i == times.size() && i == 1) break;
      cJSON *row = entry(name, int(i));
      if (i == times.size()) {
        put(row, "name", name + "_median");
        put(row, "run_type", "aggregate");
        put(row, "aggregate_name", "median");
        put(row, "aggregate_unit", "time");
      }
      put(row, "time_unit", "us");
      put(row, "label", label);
      const std::pair<const char *, double> numbers[] = {{"iterations", 1},
                                                         {"real_time", t * 1e6},
                                                         {"cpu_time", t * 1e6},
                                                         {"bytes_per_second", bytes / t},
                                                         {"flops_per_second", flops / t},
                                                         {"bandwidth_fraction", memory},
                                                         {"compute_fraction", compute},
                                                         {"roof_fraction", std::max(memory, compute)},
                                                         {"read_peak", read},
                                                         {"compute_peak", ops},
                                                         {"error", error},
                                                         {"tolerance", tolerance}};
      for (const auto &n : numbers) cJSON_AddNumberToObject(row, n.first, n.second);
    }
    std::printf("%s: %.1f us, %.2f GB/s, %.1f GFLOP/s, off by %.2g\n", name.c_str(), median * 1e6, bytes / median / 1e9,
                flops / median / 1e9, error);
    std::fflush(stdout);
  }

  void write(const std::string &path) {
    Owned<cJSON> all(cJSON_CreateObject());
    cJSON_AddItemToObject(all.get(), "context", context_.release());
    cJSON_AddItemToObject(all.get(), "benchmarks", rows_.release());
    char *text = cJSON_Print(all.get());
    FILE *file = std::fopen(path.c_str(), "w");
    bool bad = !text || !file || std::fprintf(file, "%s\n", text) < 0;
    if (file) bad |= std::fclose(file) != 0;
    cJSON_free(text);
    if (bad) die(path + ": cannot be written", 1);
  }

private:
  cJSON *entry(const std::string &name, int index) {
    cJSON *row = cJSON_CreateObject();
    cJSON_AddItemToArray(rows_.get(), row);
    put(row, "name", name);
    put(row, "run_name", name);
    put(row, "run_type", "iteration");
    cJSON_AddNumberToObject(row, "repetitions", o_.repetitions);
    cJSON_AddNumberToObject(row, "repetition_index", index);
    cJSON_AddNumberToObject(row, "threads", 1);
    return row;
  }

  const Options &o_;
  Owned<cJSON> rows_, context_;
  std::string prefix_;
};

// ---- a layer

struct Shape {
  int hidden, inter, experts, top_k;
};

Shape shape_of(const Options &o, const cJSON *presets, const std::string &name) {
  const cJSON *p;
  cJSON_ArrayForEach(p, presets) {
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(p, "name");
    if (!cJSON_IsString(n) || name != n->valuestring) continue;
    if (!cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(p, "plain_swiglu")))
      throw LeftOut("its experts are no plain SwiGLU without biases, which is what is computed here");
    Shape s = {int(number_of(p, "hidden")), int(number_of(p, "intermediate")), int(number_of(p, "experts")),
               int(number_of(p, "top_k"))};
    if (o.experts) s.experts = std::min(s.experts, o.experts);
    if (s.top_k > s.experts) die("--experts: " + name + " chooses " + std::to_string(s.top_k) + " of them");
    return s;
  }
  die("no preset '" + name + "', see moiety presets");
}

ggml_type type_of(const std::string &format, bool cpu) {
  std::string name = format.substr(0, format.find(':'));
  for (const char *order : {"_gguf", "_r16"}) // arrangements of a format, which ggml has one name for
    if (const size_t at = name.find(order); at != std::string::npos) name.resize(at);
  for (int t = 0; t < GGML_TYPE_COUNT; t++) {
    const char *n = ggml_type_name(ggml_type(t));
    if (!n || name.size() != std::strlen(n) ||
        !std::equal(name.begin(), name.end(), n, [](char a, char b) { return a == std::tolower(b); }))
      continue;
    if (format.find(':') != std::string::npos &&
        (format.substr(format.find(':')) != ":int8_32" || !cpu || !ggml_is_quantized(ggml_type(t))))
      break;
    return ggml_type(t);
  }
  die("--format: ggml has no '" + format + "'");
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

struct Layer {
  struct Set {
    ggml_tensor *m[3]; // gate, up, down
  };
  Shape s;
  ggml_type type;
  double expert_bytes;
  std::vector<Set> sets;
  Pool wide, narrow; // rows of gate and up, and of down
  Owned<ggml_context> ctx;
  Owned<ggml_backend_buffer> buffer;

  Layer(const Shape &shape, ggml_type t, ggml_backend_dev_t device, ggml_backend_buffer_type_t where, bool repack)
      : s(shape), type(t), wide(t, s.hidden, 1), narrow(t, s.inter, 100003) {
    expert_bytes = 2.0 * s.inter * wide.row_bytes + 1.0 * s.hidden * narrow.row_bytes;
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    const double each = expert_bytes * s.experts, room = std::floor(double(free) / 2 / each);
    const int n = int(std::min({std::ceil(COLD_BYTES / each), room, double(MAX_SETS)}));
    if (n < 1)
      throw LeftOut("one copy of the layer is " + std::to_string(each / 1e9) +
                    " GB, half of the device's free memory is less");
    ctx = context(3 * n);
    for (int i = 0; i < n; i++)
      sets.push_back({{ggml_new_tensor_3d(ctx.get(), type, s.hidden, s.inter, s.experts),
                       ggml_new_tensor_3d(ctx.get(), type, s.hidden, s.inter, s.experts),
                       ggml_new_tensor_3d(ctx.get(), type, s.inter, s.hidden, s.experts)}});
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), where));
    if (!buffer) throw LeftOut("the weights do not fit");
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    std::vector<char> bytes;
    for (int i = 0; i < n; i++)
      for (int m = 0; m < 3; m++) {
        ggml_tensor *w = sets[i].m[m];
        if (repack && !w->extra) throw LeftOut("this CPU has no interleaved layout of it");
        const Pool &pool = m < 2 ? wide : narrow;
        bytes.resize(ggml_nbytes(w));
        char *to = bytes.data();
        for (int e = 0; e < s.experts; e++)
          for (int r = 0; r < w->ne[1]; r++, to += pool.row_bytes)
            std::memcpy(to, &pool.rows[pool_row(i, m, e, r) * pool.row_bytes], pool.row_bytes);
        ggml_backend_tensor_set(w, bytes.data(), 0, bytes.size());
      }
  }
};

// Of a result's norm. Where weights are of few bits, ggml makes activations 8-bit, in blocks as long as those of the weights:
// these, with elements that are several times larger, come to 2 % with blocks of 32 and 4 to 6 % with blocks of 256.
double tolerance_of(ggml_type type) {
  return !ggml_is_quantized(type) ? 0.01 : ggml_blck_size(type) < 256 ? 0.04 : 0.1;
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
      : set(v % int(l.sets.size())), x(size_t(tokens) * l.s.hidden) {
    const Shape &s = l.s;
    const uint64_t seed = (10 + uint64_t(v)) * 5;
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < s.hidden; i++) {
        const uint64_t row = seed + 1 + uint64_t(t) * 7919;
        const float value = moi_random_normal(row, i) * (moi_random_below(row ^ 0x5bd1, i, 64) == 0 ? 6.0f : 1.0f);
        x[size_t(t) * s.hidden + i] = ggml_bf16_to_fp32(ggml_fp32_to_bf16(value));
      }
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

    ctx = context(8 + 2 * s.top_k, 1);
    ggml_context *c = ctx.get();
    const Layer::Set &w = l.sets[set];
    ggml_tensor *up = ggml_mul_mat_id(c, w.m[1], tx, tids), *gate = ggml_mul_mat_id(c, w.m[0], tx, tids);
    ggml_tensor *down = ggml_mul(c, ggml_mul_mat_id(c, w.m[2], ggml_swiglu_split(c, gate, up), tids), tweights);
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
    double worst = 0;
    for (int t : std::set<int>{0, tokens / 2, tokens - 1}) {
      const std::vector<double> row(&x[size_t(t) * s.hidden], &x[size_t(t) * s.hidden] + s.hidden),
          wide = l.wide.times(row);
      std::vector<double> truth(s.hidden), mid(s.inter);
      for (int k = 0; k < s.top_k; k++) {
        const int e = ids[size_t(t) * s.top_k + k];
        for (int i = 0; i < s.inter; i++) {
          const double g = wide[pool_row(set, 0, e, i)];
          mid[i] = g / (1 + std::exp(-g)) * wide[pool_row(set, 1, e, i)];
        }
        const std::vector<double> y = l.narrow.times(mid);
        for (int h = 0; h < s.hidden; h++)
          truth[h] += double(weights[size_t(t) * s.top_k + k]) * y[pool_row(set, 2, e, h)];
      }
      double off = 0, norm = 0;
      for (int h = 0; h < s.hidden; h++) {
        off += std::pow(result[size_t(t) * s.hidden + h] - truth[h], 2);
        norm += truth[h] * truth[h];
      }
      const double d = std::sqrt(off / norm);
      worst = std::isfinite(d) ? std::max(worst, d) : INFINITY;
    }
    return worst;
  }
};

// One shape of calls: the names of its rows, which differ in the format that they stand beside.
void measure(const Options &o, ggml_backend_t backend, const Layer &l, int tokens,
             const std::vector<std::string> &names, Results *results) {
  const int n = std::max(tokens <= 4 ? 64 : tokens <= 16 ? 32 : tokens <= 64 ? 8 : 2, int(l.sets.size()));
  Owned<ggml_context> inputs = context(3 * n);
  std::vector<Variant> calls;
  for (int v = 0; v < n; v++) calls.emplace_back(l, tokens, v, inputs.get());
  for (int i = 0; i < ggml_graph_n_nodes(calls[0].graph); i++)
    if (!ggml_backend_supports_op(backend, ggml_graph_node(calls[0].graph, i)))
      throw LeftOut(std::string("this device has no ") + ggml_op_name(ggml_graph_node(calls[0].graph, i)->op) +
                    " of it");
  Owned<ggml_backend_buffer> buffer(ggml_backend_alloc_ctx_tensors(inputs.get(), backend));
  Owned<ggml_gallocr> memory(
      ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend))); // shared by all: one runs at a time
  if (!buffer || !memory) throw LeftOut("the activations do not fit");
  for (const Variant &v : calls) {
    if (!ggml_gallocr_alloc_graph(memory.get(), v.graph)) throw LeftOut("the activations do not fit");
    v.fill();
  }
  const auto call = [&](int i) {
    const double start = seconds();
    if (ggml_backend_graph_compute(backend, calls[i % n].graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml_backend_graph_compute failed");
    return seconds() - start;
  };
  double error = 0, bytes = 0;
  for (int i : {0, n - 1}) {
    call(i);
    error = std::max(error, calls[i].error(l, tokens));
  }
  for (const Variant &v : calls) bytes += v.bytes / n;
  const double tolerance = tolerance_of(l.type);
  if (!(error <= tolerance))
    throw std::runtime_error("wrong result: off by " + std::to_string(error) + " of its norm, " +
                             std::to_string(tolerance) + " allowed");
  std::vector<double> times;
  for (int r = 0; r < o.repetitions; r++) {
    double sum = 0;
    int i = 0; // whole rounds, so that bytes are those of the calls
    for (; !i || i % n || sum < o.min_time; i++) sum += call(i);
    times.push_back(sum / i);
  }
  for (const std::string &name : names)
    results->add(name, l.type, times, bytes, 6.0 * l.s.hidden * l.s.inter * l.s.top_k * tokens, error, tolerance);
}

// ---- the program

const char *const usage =
    "ggml-peer: ggml's MoE layer on the work of moiety bench --op experts; rows are experts/ggml/mul_mat_id/...\n\n"
    "  --preset NAME,...   models (default: qwen3-30b-a3b), those whose experts are plain SwiGLU\n"
    "  --op experts        the one there is\n"
    "  --format NAME,...   moiety's names of weight formats (default: q4_k,q8_0,bf16). Names of one ggml type are "
    "measured\n"
    "                      once and have a row each: q4_k:int8_32 stands beside moiety's row of quantised activations\n"
    "  --tokens N,...      of a call (default: 1,8,64,512)\n"
    "  --threads N         of the CPU (default: one for each core)\n"
    "  --repack            weights in the CPU's interleaved layout: rows of ggml-repack\n"
    "  --device NAME       CPU (default), or another of ggml's, as Vulkan0: rows of ggml-vulkan0\n"
    "  --experts N         fewer experts than the model has: for tests\n"
    "  --repetitions R     (default: 3), of --min-time S seconds (default: 0.2) each\n"
    "  --presets FILE      what `moiety presets --json` prints (default: build/bin/moiety is asked)\n"
    "  --peaks FILE        a result of moiety bench from the same run: its peaks are the limits\n"
    "  --json FILE         results for moiety compare --work and moiety report\n";

Options parse(int argc, char **argv) {
  Options o;
  const std::pair<const char *, std::string *> texts[] = {
      {"--preset", &o.preset}, {"--op", &o.op},           {"--format", &o.format}, {"--tokens", &o.tokens},
      {"--device", &o.device}, {"--presets", &o.presets}, {"--peaks", &o.peaks},   {"--json", &o.json}};
  const std::pair<const char *, int *> numbers[] = {
      {"--threads", &o.threads}, {"--experts", &o.experts}, {"--repetitions", &o.repetitions}};
  for (int i = 1; i < argc; i++) o.command += std::string(" ") + argv[i];
  for (int i = 1; i < argc; i++) {
    const std::string arg = argv[i];
    if (arg == "--help" || arg == "-h") {
      std::printf("%s", usage);
      std::exit(0);
    }
    if (arg == "--repack") {
      o.repack = true;
      continue;
    }
    if (i + 1 == argc) die("no option " + arg + ", or its value is missing; --help lists what there is");
    const std::string value = argv[++i];
    bool known = false;
    for (const auto &t : texts)
      if (arg == t.first) *t.second = value, known = true;
    for (const auto &n : numbers)
      if (arg == n.first) *n.second = number(arg, value), known = true;
    if (arg == "--min-time") {
      char *end;
      o.min_time = std::strtod(value.c_str(), &end);
      if (value.empty() || *end || !(o.min_time >= 0 && o.min_time < 1e6))
        die("--min-time: '" + value + "' is no time in seconds");
      known = true;
    }
    if (!known) die("no option " + arg + "; --help lists what there is");
  }
  if (o.op != "experts") die("--op: experts is the one there is");
  if (o.repack && o.device != "CPU") die("--repack is a layout of the CPU");
  if (!o.threads) o.threads = std::max(1u, std::thread::hardware_concurrency());
  return o;
}

template <class F> F proc(ggml_backend_reg_t reg, const char *name) {
  return F(ggml_backend_reg_get_proc_address(reg, name));
}

// Threads that stay between calls, where ggml was built without OpenMP.
void set_threads(ggml_backend_t backend, int threads) {
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  if (auto set = proc<ggml_backend_set_n_threads_t>(reg, "ggml_backend_set_n_threads")) set(backend, threads);
  auto make = proc<decltype(&ggml_threadpool_new)>(reg, "ggml_threadpool_new");
  auto use = proc<decltype(&ggml_backend_cpu_set_threadpool)>(reg, "ggml_backend_cpu_set_threadpool");
  if (!make || !use) return;
  ggml_threadpool_params params = ggml_threadpool_params_default(threads);
  use(backend, make(&params));
}

ggml_backend_buffer_type_t repacked(ggml_backend_dev_t device) {
  auto extra = proc<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_dev_backend_reg(device),
                                                        "ggml_backend_dev_get_extra_bufts");
  for (auto b = extra ? extra(device) : nullptr; b && *b; b++)
    if (!std::strcmp(ggml_backend_buft_name(*b), "CPU_REPACK")) return *b;
  die("--repack: this ggml has no interleaved layout", 1);
}

} // namespace

int main(int argc, char **argv) {
  const Options o = parse(argc, argv);
  ggml_backend_load_all();
  Owned<ggml_backend> backend(ggml_backend_init_by_name(o.device.c_str(), nullptr));
  if (!backend) {
    std::string all;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++)
      all += std::string(i ? ", " : "") + ggml_backend_dev_name(ggml_backend_dev_get(i));
    die("--device: no '" + o.device + "'; there are " + all);
  }
  const bool cpu = o.device == "CPU";
  ggml_backend_dev_t device = ggml_backend_get_device(backend.get());
  if (cpu) set_threads(backend.get(), o.threads);
  const ggml_backend_buffer_type_t where =
      o.repack ? repacked(device) : ggml_backend_get_default_buffer_type(backend.get());
  std::string who = cpu ? o.repack ? "ggml-repack" : "ggml" : "ggml-" + o.device;
  for (char &c : who) c = char(std::tolower(c));

  FILE *file = o.presets.empty() ? popen("build/bin/moiety presets --json", "r") : std::fopen(o.presets.c_str(), "r");
  const std::string what = o.presets.empty() ? "build/bin/moiety presets --json" : o.presets;
  const Owned<cJSON> presets = parse(read(file, what), what);
  if (o.presets.empty()) pclose(file);
  else std::fclose(file);

  const std::vector<std::string> formats = split(o.format);
  std::vector<ggml_type> types; // each once, as they are asked for
  for (const std::string &f : formats)
    if (const ggml_type t = type_of(f, cpu); std::find(types.begin(), types.end(), t) == types.end())
      types.push_back(t);
  std::vector<int> tokens;
  for (const std::string &t : split(o.tokens)) tokens.push_back(number("--tokens", t));

  Results results(o, device);
  for (const std::string &preset : split(o.preset))
    for (ggml_type type : types) {
      const std::string title = who + "/" + ggml_type_name(type) + "/" + preset;
      try {
        const Shape s = shape_of(o, presets.get(), preset);
        if (s.hidden % ggml_blck_size(type) || s.inter % ggml_blck_size(type))
          throw LeftOut("rows are no whole blocks of it");
        if (ggml_quantize_requires_imatrix(type)) throw LeftOut("to make weights of it takes an importance matrix");
        const Layer layer(s, type, device, where, o.repack);
        for (int n : tokens) {
          std::vector<std::string> names;
          for (const std::string &f : formats)
            if (type_of(f, cpu) == type)
              names.push_back("experts/" + who + "/mul_mat_id/" + f + "/" + preset + "/tokens:" + std::to_string(n));
          try {
            measure(o, backend.get(), layer, n, names, &results);
          } catch (const LeftOut &) {
            throw;
          } catch (const std::runtime_error &e) {
            for (const std::string &name : names) results.fail(name, e.what());
          }
        }
      } catch (const LeftOut &e) {
        std::printf("%s: left out: %s\n", title.c_str(), e.what());
      }
    }
  const bool bad = results.failed || results.empty();
  if (!o.json.empty()) results.write(o.json);
  return bad;
}
