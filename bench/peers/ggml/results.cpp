// What the peer's ops share: results, calls and their time, numbers.
#include "peer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sstream>

#include "bench/rig/random.h"

void die(const std::string &why, int status) {
  std::fprintf(stderr, "ggml-peer: %s\n", why.c_str());
  std::exit(status);
}

Owned<ggml_context> context(size_t tensors, size_t graphs) {
  return Owned<ggml_context>(
      ggml_init({ggml_tensor_overhead() * tensors + ggml_graph_overhead() * graphs, nullptr, true}));
}

std::vector<std::string> split(const std::string &list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

std::vector<int> numbers_of(const std::string &option, const std::string &list) {
  std::vector<int> out;
  for (const std::string &text : split(list)) {
    char *end;
    const long n = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || n < 1 || n > 1 << 20) die(option + ": '" + text + "' is no number of 1 to 1048576");
    out.push_back(int(n));
  }
  return out;
}

double number_of(const cJSON *object, const std::string &name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name.c_str());
  return cJSON_IsNumber(item) ? item->valuedouble : cJSON_IsString(item) ? std::atof(item->valuestring) : 0;
}

bool truth_of(const cJSON *object, const char *name) {
  return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

std::string text_of(const cJSON *object, const char *name) {
  const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
  return cJSON_IsString(item) ? item->valuestring : "";
}

// ---- results

static void put(cJSON *object, const char *name, const std::string &value) {
  cJSON_DeleteItemFromObjectCaseSensitive(object, name);
  cJSON_AddStringToObject(object, name, value.c_str());
}

static Owned<cJSON> context_of(const std::string &path) {
  FILE *file = std::fopen(path.c_str(), "r");
  if (!file) die(path + ": cannot be read");
  std::string text;
  char part[4096];
  for (size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
  std::fclose(file);
  Owned<cJSON> ours(cJSON_Parse(text.c_str()));
  Owned<cJSON> context(cJSON_DetachItemFromObjectCaseSensitive(ours.get(), "context"));
  if (!cJSON_IsObject(context.get())) die(path + ": no result of moiety bench");
  return context;
}

Results::Results(const Options &o, const Engine &e) : o_(o), e_(e), rows_(cJSON_CreateArray()) {
  if (!o.peaks.empty()) {
    context_ = context_of(o.peaks);
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
  put(context_.get(), "ggml_device", ggml_backend_dev_description(e.device));
  if (!e.library.empty()) put(context_.get(), "ggml_library", e.library);
  cJSON_DeleteItemFromObjectCaseSensitive(context_.get(), "layers");
  const std::string name = o.device.substr(0, o.device.find_first_of("0123456789"));
  prefix_ = name == "CPU" ? "" : name + "_";
  for (char &c : prefix_) c = char(std::tolower(c));
}

// The peak that a type's arithmetic is measured against: bench.cc's names of it.
double Results::compute(ggml_type type, std::string *label) const {
#if defined(__x86_64__)
  const std::string integer = "of int8 VNNI";
#else
  const std::string integer = "of int8 SDOT";
#endif
  if (e_.cpu && ggml_is_quantized(type)) {
    if (e_.vnni && peak("int8_gops") > 0) return *label = integer, peak("int8_gops");
    if (!e_.vnni && peak("maddubsw_gops") > 0) return *label = "of int8 madd", peak("maddubsw_gops");
  }
  if ((!e_.cpu || (e_.bf16 && type == GGML_TYPE_BF16)) && peak("bf16_gflops") > 0)
    return *label = e_.cpu ? "of bf16" : "of bf16 mma", peak("bf16_gflops");
  return *label = "of f32 FMA", peak("f32_gflops");
}

void Results::fail(const std::string &name, const std::string &why) {
  failed++;
  std::printf("%s: FAILED: %s\n", name.c_str(), why.c_str());
  cJSON *row = entry(name, 0);
  cJSON_AddBoolToObject(row, "error_occurred", 1);
  put(row, "error_message", why);
}

void Results::add(Row row, const std::vector<std::string> &names, Calls &calls, bool whole_rounds) {
  if (!(row.error <= row.tolerance))
    throw std::runtime_error("wrong result: off by " + std::to_string(row.error) + " of its norm, " +
                             std::to_string(row.tolerance) + " allowed");
  const std::vector<double> times = calls.measure(o_, whole_rounds);
  for (const std::string &name : names) {
    row.name = name;
    add(row, times);
  }
}

void Results::add(const Row &r, const std::vector<double> &times) {
  std::string label;
  const double read = peak("read_gbs"), ops = compute(r.type, &label);
  std::vector<double> sorted = times;
  std::sort(sorted.begin(), sorted.end());
  const double median = sorted[sorted.size() / 2];
  for (size_t i = 0; i <= times.size(); i++) {
    const double t = i < times.size() ? times[i] : median;
    const double memory = read > 0 ? r.bytes / t / read : 0, compute = ops > 0 ? r.flops / t / ops : 0;
    if (i == times.size() && i == 1) break;
    cJSON *row = entry(r.name, int(i));
    if (i == times.size()) {
      put(row, "name", r.name + "_median");
      put(row, "run_type", "aggregate");
      put(row, "aggregate_name", "median");
      put(row, "aggregate_unit", "time");
    }
    put(row, "time_unit", "us");
    put(row, "label", label);
    for (const auto &text : r.texts) put(row, text.first.c_str(), text.second);
    std::vector<std::pair<std::string, double>> numbers = {{"iterations", 1},
                                                           {"real_time", t * 1e6},
                                                           {"cpu_time", t * 1e6},
                                                           {"bytes_per_second", r.bytes / t},
                                                           {"flops_per_second", r.flops / t},
                                                           {"bandwidth_fraction", memory},
                                                           {"compute_fraction", compute},
                                                           {"roof_fraction", std::max(memory, compute)},
                                                           {"read_peak", read},
                                                           {"compute_peak", ops},
                                                           {"error", r.error},
                                                           {"tolerance", r.tolerance}};
    numbers.insert(numbers.end(), r.numbers.begin(), r.numbers.end());
    for (const auto &n : numbers) cJSON_AddNumberToObject(row, n.first.c_str(), n.second);
  }
  std::printf("%s: %.1f us (%.1f to %.1f), %.2f GB/s, %.1f GFLOP/s, off by %.2g\n", r.name.c_str(), median * 1e6,
              sorted.front() * 1e6, sorted.back() * 1e6, r.bytes / median / 1e9, r.flops / median / 1e9, r.error);
  std::fflush(stdout);
}

void Results::write(const std::string &path) {
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

cJSON *Results::entry(const std::string &name, int index) {
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

// ---- calls

Calls::Calls(const Engine &e, std::vector<ggml_cgraph *> graphs)
    : backend_(e.backend), graphs_(std::move(graphs)),
      memory_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(e.backend))) {
  for (int i = 0; i < ggml_graph_n_nodes(graphs_[0]); i++)
    if (!ggml_backend_supports_op(backend_, ggml_graph_node(graphs_[0], i)))
      throw LeftOut(std::string("this device has no ") + ggml_op_name(ggml_graph_node(graphs_[0], i)->op) + " of it");
  for (ggml_cgraph *graph : graphs_)
    if (!memory_ || !ggml_gallocr_alloc_graph(memory_.get(), graph)) throw LeftOut("the activations do not fit");
}

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Calls::run(int i) {
  const double start = seconds();
  if (ggml_backend_graph_compute(backend_, graphs_[size_t(i) % graphs_.size()]) != GGML_STATUS_SUCCESS)
    throw std::runtime_error("ggml_backend_graph_compute failed");
  return seconds() - start;
}

std::vector<double> Calls::measure(const Options &o, bool whole_rounds) {
  std::vector<double> times;
  for (int r = 0; r < o.repetitions; r++) {
    double sum = 0;
    int n = 0;
    for (; !n || sum < o.min_time || (whole_rounds && size_t(n) % graphs_.size()); n++) sum += run(next_++);
    times.push_back(sum / n);
    next_ %= int(graphs_.size());
  }
  return times;
}

// ---- numbers

ggml_type type_of(const std::string &option, const std::string &format, bool cpu) {
  const size_t colon = format.find(':');
  std::string name = format.substr(0, colon);
  const std::string act = colon == std::string::npos ? "" : format.substr(colon);
  for (const char *order : {"_gguf", "_r16"}) // arrangements of a format, which ggml has one name for
    if (const size_t at = name.find(order); at != std::string::npos) name.resize(at);
  for (int t = 0; t < GGML_TYPE_COUNT; t++) {
    const char *n = ggml_type_name(ggml_type(t));
    if (!n || name.size() != std::strlen(n) ||
        !std::equal(name.begin(), name.end(), n, [](char a, char b) { return a == std::tolower(b); }))
      continue;
    if (act.empty() || act == ":none" || (act == ":int8_32" && cpu && ggml_is_quantized(ggml_type(t))))
      return ggml_type(t);
    break;
  }
  die(option + ": ggml has no '" + format + "'");
}

std::vector<float> activations(int rows, int columns, uint64_t seed) {
  std::vector<float> x;
  x.reserve(size_t(rows) * columns);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < columns; i++) {
      const uint64_t row = seed + uint64_t(r) * 7919;
      const float value = moi_random_normal(row, i) * (moi_random_below(row ^ 0x5bd1, i, 64) == 0 ? 6.0f : 1.0f);
      x.push_back(ggml_bf16_to_fp32(ggml_fp32_to_bf16(value)));
    }
  return x;
}

int calls_for(int tokens, int sets) {
  return std::max(tokens <= 4 ? 64 : tokens <= 16 ? 32 : tokens <= 64 ? 8 : 2, sets);
}

double distance(const std::vector<double> &result, const std::vector<double> &truth) {
  double off = 0, norm = 0;
  for (size_t i = 0; i < truth.size(); i++) {
    off += std::pow(result[i] - truth[i], 2);
    norm += truth[i] * truth[i];
  }
  const double d = std::sqrt(off / norm);
  return std::isfinite(d) ? d : INFINITY;
}

// Of a result's norm. Where weights are of few bits, ggml makes activations 8-bit, in blocks as long as those of the weights:
// these, with elements that are several times larger, come to 2 % with blocks of 32, to 5 % where a token's sums cancel (704
// rows of down from a pool of 251), and to 4 to 6 % with blocks of 256.
double tolerance_of(ggml_type type) {
  return !ggml_is_quantized(type) ? 0.01 : ggml_blck_size(type) < 256 ? 0.06 : 0.1;
}
