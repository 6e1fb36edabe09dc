// moiety bench: rows of layers on Google Benchmark, against the peaks of the same machine measured in the same run.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "bench/bench_attention.h"
#include "bench/bench_layer.h"
#include "bench/commands.h"
#include "bench/memory.h"
#include "bench/options.h"
#include "bench/peak.h"
extern "C" {
#include "bench/rig/device.h"
}

#ifndef MOI_GIT_COMMIT
#define MOI_GIT_COMMIT ""
#endif

namespace {

struct Settings {
  const char *preset = nullptr, *op = "moe", *tokens = "1,8,64,512", *backend = "all", *format = "native";
  const char *kernel = nullptr, *json = nullptr, *weights = nullptr, *operands = nullptr;
  const char *kv = "4096", *batch = "1,8", *kv_format = "native";
  uint64_t threads = 0, layer = 0, repetitions = 1, page_size = 0;
  double min_time = 0.5, memory_gb = 0;
  int launches = 0;
  uint64_t device = 0;
};

// Of a layer's experts and routing, or of its attention: the other pointers are null.
struct Row {
  moi_bench_layer *layer;
  moi_bench_row *row;
  moi_bench_attention *attention;
  std::string name;
  moi_device *device; // NULL: the CPU
  moi_peak_kind compute;
  const char *compute_name;
};

moi_peak peak;
moi_probe *probe;
moi_bench_layer *filled; // the layer whose weights are in memory
bool failed;

std::vector<std::string> split(const char *list) {
  std::vector<std::string> out;
  std::string text = list;
  size_t at = 0;
  for (size_t comma; (comma = text.find(',', at)) != std::string::npos; at = comma + 1)
    out.push_back(text.substr(at, comma - at));
  out.push_back(text.substr(at));
  return out;
}

// What this machine, or a device of it, gives at a moment, with nothing else on it.
struct Moment {
  double read = 0, ops = 0;
  moi_device *device = nullptr;
  moi_peak_kind kind = MOI_PEAK_F32;
  std::chrono::steady_clock::time_point time;
};
Moment latest;

Moment moment(moi_device *device, moi_peak_kind kind) {
  // threads of the pool spin for a moment after their last work: they are not to be part of what is measured
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Moment m;
  m.read = device ? moi_device_read_rate(device) : moi_probe_read(probe);
  m.ops = device ? moi_device_ops_rate(device, kind) : moi_probe_ops(probe, kind);
  m.device = device;
  m.kind = kind;
  m.time = std::chrono::steady_clock::now();
  latest = m;
  return m;
}

// The moment before a measurement: the one after the last, if that was just now.
Moment moment_before(moi_device *device, moi_peak_kind kind) {
  const auto age = std::chrono::steady_clock::now() - latest.time;
  const bool same = latest.read > 0 && latest.device == device && latest.kind == kind;
  return same && age < std::chrono::milliseconds(500) ? latest : moment(device, kind);
}

void count(benchmark::State &state, const Row &r, double bytes, double flops, double seconds, const Moment &before) {
  const Moment after = moment(r.device, r.compute);
  const double read = (before.read + after.read) / 2, ops = (before.ops + after.ops) / 2;
  double error = 0, allowed = 0;
  if (r.attention) moi_bench_attention_checked(r.attention, &error, &allowed);
  else moi_bench_row_checked(r.row, &error, &allowed);
  state.counters["error"] = error;
  state.counters["tolerance"] = allowed;
  state.counters["bytes_per_second"] = bytes / seconds;
  state.counters["flops_per_second"] = flops / seconds;
  state.counters["bandwidth_fraction"] = read > 0 ? bytes / seconds / read : 0;
  state.counters["compute_fraction"] = ops > 0 ? flops / seconds / ops : 0;
  // the roofline's time, that of the slower of the two at its peak, of the time taken
  state.counters["roof_fraction"] =
      std::max(state.counters["bandwidth_fraction"].value, state.counters["compute_fraction"].value);
  state.counters["read_peak"] = read;
  state.counters["compute_peak"] = ops;
  state.SetLabel(r.compute_name);
}

void measure_attention(benchmark::State &state, const Row &r) {
  char error[512];
  if (filled) moi_bench_layer_drop(filled);
  filled = nullptr;
  if (moi_bench_attention_prepare(r.attention, error, sizeof error)) {
    moi_bench_attention_release(r.attention);
    state.SkipWithError(error);
    return;
  }
  const Moment before = moment_before(r.device, r.compute);
  uint64_t i = 0;
  moi_status status = moi_bench_attention_run(r.attention, 1);
  double busy = 0;
  auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    (void)_;
    if (status) break;
    status = moi_bench_attention_run(r.attention, i++);
    if (r.device) busy += moi_device_busy(r.device);
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  moi_bench_attention_release(r.attention);
  if (status) {
    state.SkipWithError(moi_last_error());
    return;
  }
  const moi_bench_attention_shape *shape = moi_bench_attention_shape_of(r.attention);
  count(state, r, moi_bench_attention_bytes(r.attention) * double(i),
        moi_bench_attention_flops(r.attention) * double(i), seconds, before);
  if (busy > 0 && i) state.counters["device_seconds"] = busy / double(i);
  state.counters["rows"] = shape->rows;
  state.counters["sequences"] = shape->sequences;
  state.counters["kv_len"] = shape->kv_len;
  state.counters["page_size"] = shape->page_size;
}

void measure(benchmark::State &state, const Row &r) {
  char error[512];
  if (r.attention) {
    measure_attention(state, r);
    return;
  }
  if (filled != r.layer) { // rows of a layer follow each other
    if (filled) moi_bench_layer_drop(filled);
    filled = r.layer;
  }
  if (moi_bench_row_prepare(r.row, error, sizeof error)) {
    moi_bench_row_release(r.row);
    state.SkipWithError(error);
    return;
  }
  const Moment before = moment_before(r.device, r.compute);
  uint64_t i = 0;
  moi_status status = moi_bench_row_run(r.row, 1); // page in code and threads
  double bytes = 0, flops = 0;
  double busy = 0;
  auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    (void)_;
    if (status) break;
    status = moi_bench_row_run(r.row, i++);
    if (r.device) busy += moi_device_busy(r.device);
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (uint64_t j = 0; j < i; j++) {
    bytes += moi_bench_row_bytes(r.row, j);
    flops += moi_bench_row_flops(r.row, j);
  }
  moi_bench_row_release(r.row);
  if (status) {
    state.SkipWithError(moi_last_error());
    return;
  }
  count(state, r, bytes, flops, seconds, before);
  if (busy > 0 && i) state.counters["device_seconds"] = busy / double(i);
}

// Names are said without what Google Benchmark adds about its own settings; one line for each row: the median.
using Runs = std::vector<benchmark::BenchmarkReporter::Run>;
Runs plain_names(const Runs &runs) {
  Runs copy = runs;
  for (auto &run : copy) {
    run.run_name.time_type.clear();
    run.run_name.min_time.clear();
    run.run_name.repetitions.clear();
  }
  return copy;
}

// Google Benchmark 1.8 turned error_occurred into skipped; whichever there is.
template <class Run> auto error_of(const Run &run, int) -> decltype(run.error_occurred, std::string()) {
  return run.error_occurred ? run.error_message + " " : std::string();
}
template <class Run> auto error_of(const Run &run, long) -> decltype(run.skip_message, std::string()) {
  return run.skip_message.empty() ? std::string() : run.skip_message + " ";
}

// What a row of attention is, as members of their own: Google Benchmark's counters are numbers. And without the variation
// of what is 0 everywhere: NaN is not JSON.
std::string with_kinds(const std::string &json) {
  std::string out;
  std::istringstream lines(json);
  for (std::string line; std::getline(lines, line);) {
    if (line.size() > 5 && !line.compare(line.size() - 5, 5, " NaN,")) continue;
    out += line + (lines.eof() ? "" : "\n");
    size_t name = line.find("\"run_name\": \"attention/"), kind = line.find("/kind:");
    if (name == std::string::npos || kind == std::string::npos) continue;
    size_t format = name;
    for (int i = 0; i < 3; i++) format = line.find('/', format + 1);
    out += "      \"kind\": \"" + line.substr(kind + 6, line.find('/', kind + 6) - kind - 6) + "\",\n";
    out += "      \"kv_format\": \"" + line.substr(format + 1, line.find('/', format + 1) - format - 1) + "\",\n";
  }
  return out;
}

class Json : public benchmark::JSONReporter {
 public:
  void ReportRuns(const Runs &runs) override {
    std::ostream &out = GetOutputStream();
    std::ostringstream text;
    SetOutputStream(&text);
    benchmark::JSONReporter::ReportRuns(plain_names(runs));
    SetOutputStream(&out);
    out << with_kinds(text.str());
  }
};

class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(size_t width) : width_(static_cast<int>(width)) {}
  bool ReportContext(const Context &) override {
    std::printf("%-*s %12s %9s %8s %10s %8s  %s\n", width_, "row", "time", "GB/s", "of peak", "GFLOP/s", "of peak",
                "of roof");
    return true;
  }
  void ReportRuns(const Runs &runs) override {
    for (const auto &run : plain_names(runs)) {
      std::string error = error_of(run, 0);
      if (!error.empty()) {
        failed = true;
        std::printf("%-*s FAILED: %s\n", width_, run.run_name.str().c_str(), error.c_str());
        continue;
      }
      bool aggregate = run.run_type == Run::RT_Aggregate;
      if (aggregate ? run.aggregate_name != "median" : run.repetitions > 1) continue;
      double us = run.real_accumulated_time * 1e6 / (aggregate || !run.iterations ? 1 : double(run.iterations));
      if (aggregate) us = run.GetAdjustedRealTime();
      char time[32];
      std::snprintf(time, sizeof time,
                    us >= 1e4   ? "%.1f ms"
                    : us >= 1e3 ? "%.2f ms"
                                : "%.1f us",
                    us >= 1e3 ? us / 1e3 : us);
      bool memory = number(run, "bandwidth_fraction") >= number(run, "compute_fraction");
      std::printf("%-*s %12s %9.2f %7.0f%% %10.1f %7.0f%%  %.0f%%, %s\n", width_, run.run_name.str().c_str(), time,
                  number(run, "bytes_per_second") / 1e9, 100 * number(run, "bandwidth_fraction"),
                  number(run, "flops_per_second") / 1e9, 100 * number(run, "compute_fraction"),
                  100 * number(run, "roof_fraction"), memory ? "memory" : "compute");
    }
    std::fflush(stdout);
  }

 private:
  static double number(const Run &run, const char *name) {
    auto at = run.counters.find(name);
    return at == run.counters.end() ? 0 : at->second.value;
  }
  int width_;
};

std::string text(const char *format, double value) {
  char out[64];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

// Which of a device's peaks a kernel of it works against: its name says which tensor cores, "mma" alone are those of bf16.
moi_peak_kind device_kind(moi_device *device, const std::string &kernel) {
  const struct {
    const char *name;
    moi_peak_kind kind;
  } all[] = {{"mma-int8", MOI_PEAK_INT8}, {"mma-fp8", MOI_PEAK_FP8}, {"mma-mx", MOI_PEAK_FP8}, {"mma-f16", MOI_PEAK_F16}, {"mma", MOI_PEAK_BF16},
             {"flash-split-bf16", MOI_PEAK_BF16}, {"bf16-cublas", MOI_PEAK_BF16}, {"bf16_kn-cublas", MOI_PEAK_BF16},
             {"f16-cublas", MOI_PEAK_F16}};
  for (const auto &one : all)
    if (kernel.find(one.name) != std::string::npos)
      return moi_device_ops_rate(device, one.kind) > 0 ? one.kind : MOI_PEAK_F32;
  return MOI_PEAK_F32;
}
// Which of the CPU's.
moi_peak_kind compute_kind(const std::string &kernel, const char *needs) {
  if (kernel.find("-i8-panel-avx2") != std::string::npos) return MOI_PEAK_MADDUBSW;
  if (kernel.find("-panel-avx2") != std::string::npos) return MOI_PEAK_MADDWD;
  const struct {
    const char *needs;
    moi_peak_kind kind;
  } all[] = {{"avx512vnni", MOI_PEAK_INT8}, {"avxvnni", MOI_PEAK_INT8}, {"dotprod", MOI_PEAK_INT8}, {"i8mm", MOI_PEAK_I8MM},
             {"avx512bf16", MOI_PEAK_BF16}, {"neonbf16", MOI_PEAK_BF16}};
  for (const auto &one : all)
    if (!std::strcmp(needs, one.needs) && peak.ops[one.kind] > 0) return one.kind;
  return MOI_PEAK_F32;
}
const char *compute_name(moi_peak_kind kind, bool device, const char *needs) {
  switch (kind) {
    case MOI_PEAK_INT8: return device ? "of int8 mma" : std::strcmp(needs, "dotprod") ? "of int8 VNNI" : "of int8 SDOT";
    case MOI_PEAK_MADDWD: return "of int16 madd";
    case MOI_PEAK_MADDUBSW: return "of int8 madd";
    case MOI_PEAK_I8MM: return "of int8 SMMLA";
    case MOI_PEAK_BF16: return device ? "of bf16 mma" : "of bf16";
    case MOI_PEAK_F16: return "of f16 mma";
    case MOI_PEAK_FP8: return "of fp8 mma";
    default: return "of f32 FMA";
  }
}
// kernel: the row of the list that serves most of the work; needs: what it takes.
void set_compute(Row *r, const char *kernel, const char *needs) {
  r->compute = r->device ? device_kind(r->device, kernel) : compute_kind(kernel, needs);
  r->compute_name = compute_name(r->compute, r->device != nullptr, needs);
}

void log_line(void *, moi_log_level level, const char *line) {
  if (level <= MOI_LOG_WARNING) std::fprintf(stderr, "moiety: %s\n", line);
}

struct LayerFree {
  void operator()(moi_bench_layer *l) const { moi_bench_layer_free(l); }
};
struct ProbeFree {
  void operator()(moi_probe *p) const { moi_probe_close(p); }
};
struct RowFree {
  void operator()(moi_bench_row *r) const { moi_bench_row_free(r); }
};
struct AttentionFree {
  void operator()(moi_bench_attention *a) const { moi_bench_attention_free(a); }
};
struct ContextFree {
  void operator()(moi_context *c) const {
    if (c) moi_device_forget(c);
    moi_context_destroy(c);
  }
};

moi_status open_context(moi_backend backend, uint32_t device, uint32_t threads, std::unique_ptr<moi_context, ContextFree> *out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context = nullptr;
  desc.backend = backend;
  desc.device = backend == MOI_BACKEND_CPU ? 0 : device;
  desc.n_workers = backend == MOI_BACKEND_CPU ? threads : 0;
  desc.log = log_line;
  moi_status status = moi_context_create(&desc, &context);
  out->reset(context);
  return status;
}

int parse_numbers(const char *option, const char *list, unsigned long most, std::vector<uint32_t> *out) {
  for (const std::string &word : split(list)) {
    char *end = nullptr;
    unsigned long n = std::strtoul(word.c_str(), &end, 10);
    if (word.empty() || *end || n < 1 || n > most)
      return moi_usage_error("bench", "%s: '%s' is no number of 1 to %lu", option, word.c_str(), most);
    out->push_back(static_cast<uint32_t>(n));
  }
  return 0;
}

int parse_ops(const char *list, std::vector<std::pair<moi_op, std::string>> *out) {
  const std::vector<std::pair<moi_op, std::string>> all = {
      {MOI_OP_ROUTE, "route"}, {MOI_OP_EXPERTS, "experts"}, {MOI_OP_MOE, "moe"}, {MOI_OP_ATTENTION, "attention"},
      {MOI_OP_GEMM, "gemm"}, {MOI_OP_ROUTE, "select"}};
  for (const std::string &word : split(list)) {
    bool found = false;
    for (const auto &op : all)
      if (word == op.second || (word == "all" && op.second != "gemm" && op.second != "select")) {
        out->push_back(op);
        found = true;
      }
    if (!found)
      return moi_usage_error("bench", "--op: no '%s'; there are route, experts, moe, attention, gemm, select, all", word.c_str());
  }
  return 0;
}

int parse_kv_formats(const char *list, std::vector<moi_format> *out) {
  for (const std::string &word : split(list)) {
    moi_format format = MOI_FORMAT_NONE;
    if (word != "native") {
      if (!moi_list_has("f32,f16,bf16,fp8,q8_0", word.c_str()))
        return moi_usage_error("bench", "--kv-format: no '%s'; there are native, f32, f16, bf16, fp8, q8_0",
                               word.c_str());
      format = moi_format_from_name(word.c_str());
    }
    out->push_back(format);
  }
  return 0;
}

// FORMAT or FORMAT:QUANTISATION. 0, or an exit status after a message.
int parse_format(const std::string &word, moi_format *format, int *quant) {
  size_t colon = word.find(':');
  std::string name = word.substr(0, colon), act = colon == std::string::npos ? "" : word.substr(colon + 1);
  *format = MOI_FORMAT_NONE;
  *quant = -1;
  if (name != "native")
    if (int status = moi_find_format("bench", name.c_str(), format)) return status;
  if (colon == std::string::npos) return 0;
  std::string all;
  for (int i = 0; const char *known = moi_act_quant_name(static_cast<moi_act_quant>(i)); i++) {
    if (act == known) *quant = i;
    all += std::string(i ? ", " : "") + known;
  }
  return *quant >= 0 ? 0 : moi_usage_error("bench", "--format: no '%s' behind the colon; there are %s", act.c_str(), all.c_str());
}

// The layers that are asked for. 0, or an exit status after a message.
int open_layers(const Settings &s, uint64_t memory, std::vector<std::unique_ptr<moi_bench_layer, LayerFree>> *out) {
  char error[768];
  if (s.weights) {
    moi_bench_layer *l = moi_bench_layer_of_file(s.weights, static_cast<uint32_t>(s.layer), error, sizeof error);
    if (!l) {
      std::fprintf(stderr, "moiety bench: %s\n", error);
      return 1;
    }
    out->emplace_back(l);
    return 0;
  }
  for (const std::string &name : split(s.preset))
    for (const std::string &format_name : split(s.format)) {
      const moi_preset *preset;
      moi_format format;
      int quant;
      if (int status = moi_find_preset("bench", name.c_str(), &preset)) return status;
      if (int status = parse_format(format_name, &format, &quant)) return status;
      moi_bench_layer *l = moi_bench_layer_of_preset(preset, format, memory, error, sizeof error);
      if (!l) {
        std::fprintf(stderr, "moiety bench: %s\n", error);
        return 1;
      }
      if (quant >= 0) moi_bench_layer_quantise(l, static_cast<moi_act_quant>(quant));
      out->emplace_back(l);
    }
  return 0;
}

struct AttentionRows {
  const std::vector<uint32_t> &kv, &batch, &tokens;
  const std::vector<moi_format> &formats;
  uint32_t page_size;
  uint64_t memory;
  const char *kernel;
};

// Prompts and decodes of each kind of a preset's attention; MLA has a form for each of the two.
void open_attention(const moi_preset *preset, moi_backend backend, moi_context *context, moi_context *reference,
                    const AttentionRows &asked, std::vector<std::unique_ptr<moi_bench_attention, AttentionFree>> *owned,
                    std::vector<Row> *rows) {
  if (!preset->n_attention)
    std::fprintf(stderr, "moiety bench: %s: no attention of it is built in: %s\n", preset->name, preset->note);
  for (uint32_t k = 0; k < preset->n_attention; k++)
    for (moi_format format : asked.formats) {
      const moi_preset_attention *kind = &preset->attention[k];
      std::vector<moi_bench_attention_shape> shapes;
      for (uint32_t n : asked.tokens)
        if (n > 16 && std::strcmp(kind->kind, "mla-absorbed")) shapes.push_back({1, n, n, asked.page_size, format});
      for (uint32_t n : asked.kv)
        for (uint32_t sequences : asked.batch)
          if (std::strcmp(kind->kind, "mla")) shapes.push_back({sequences, 1, n, asked.page_size, format});
      for (const moi_bench_attention_shape &shape : shapes) {
        char error[512];
        moi_bench_attention *row = nullptr;
        if (moi_bench_attention_open(preset, kind, &shape, asked.memory, context, reference, asked.kernel, &row, error,
                                     sizeof error)) {
          std::fprintf(stderr, "moiety bench: %s, attention %s, %s, %u x %u over %u keys: %s\n", preset->name,
                       kind->kind, moi_backend_name(backend), shape.sequences, shape.rows, shape.kv_len, error);
          failed = true;
          continue;
        }
        owned->emplace_back(row);
        moi_status status;
        Row r = {nullptr, nullptr, row, "", moi_device_of(context, &status), MOI_PEAK_F32, ""};
        set_compute(&r, moi_bench_attention_serving(row), moi_bench_attention_needs(row));
        r.name = std::string("attention/") + moi_backend_name(backend) + "/" + moi_bench_attention_kernel(row) + "/" +
                 moi_bench_attention_name(row);
        rows->push_back(r);
      }
    }
}

int parse(int argc, char **argv, Settings *s) {
  static const moi_command command = {
      "bench", "time, GB/s and the fraction of this device's measured peak",
      "Rows are named op/backend/kernel/format/preset/tokens:N. Every iteration has other tokens and other experts,\n"
      "and the weights are there several times over (2 GB at least, where memory allows), so that they come from\n"
      "memory, as in a model. bytes: the weights of the experts that a call touches, and its activations. Fractions\n"
      "are of the peaks measured before and after each repetition, on as many threads: reading memory in order, and\n"
      "multiply-adds of the kind that the kernel uses. Of roof is the larger of the two, and whose it is: the least\n"
      "time that bytes or operations can take, of the time taken. Each result is checked against the reference\n"
      "before it is timed; a wrong one fails the row, and the exit status is 1.\n"
      "On a device, weights and operands lie in its memory; the time is that of recording, submission and wait, and\n"
      "device_seconds in the results what the device's own clock says of a call. Its limits are its own. On CUDA a call\n"
      "is a graph that is launched again, as engines do it; with --launches it is launched kernel by kernel.\n"
      "Attention has rows for each kind of layer: prompts of --tokens above 16, and decodes of one token for each of\n"
      "--batch sequences of --kv keys. bytes: the keys and values that a call sees, queries and output.\n"
      "gemm is one expert's up projection as a bare GEMM, another expert's in every iteration; select is route from the\n"
      "router's logits, without the router.\n",
      nullptr};
  moi_option options[] = {
      {"--preset", MOI_OPTION_TEXT, &s->preset, "NAME,...", "models, see moiety presets (default: qwen3-30b-a3b)", 0},
      {"--weights", MOI_OPTION_TEXT, &s->weights, "FILE", "a GGUF or safetensors checkpoint instead of a preset", 0},
      {"--layer", MOI_OPTION_UINT, &s->layer, "N", "the checkpoint's layer (default: 0)", 0},
      {"--op", MOI_OPTION_TEXT, &s->op, "OP,...", "of route, experts, moe, attention, gemm, select; all but the last two (default: moe)", 0},
      {"--tokens", MOI_OPTION_TEXT, &s->tokens, "N,...", "tokens of a call (default: 1,8,64,512)", 0},
      {"--backend", MOI_OPTION_TEXT, &s->backend, "NAME,...", "of cpu, cuda, vulkan; all that are here (default)", 0},
      {"--format", MOI_OPTION_TEXT, &s->format, "NAME,...", "weight formats, or native: the preset's own (default); q4_k:int8_32: with activations quantised", 0},
      {"--device", MOI_OPTION_UINT, &s->device, "N", "of a backend that has several, see moiety devices (default: 0)", 0},
      {"--threads", MOI_OPTION_UINT, &s->threads, "N", "CPU threads (default: one for each core)", 0},
      {"--kernel", MOI_OPTION_TEXT, &s->kernel, "NAME", "a row of the kernel list (default: the library chooses)", 0},
      {"--json", MOI_OPTION_TEXT, &s->json, "FILE", "write the results for compare and tables", 0},
      {"--repetitions", MOI_OPTION_UINT, &s->repetitions, "R", "of every row; the median counts (default: 1)", 0},
      {"--min-time", MOI_OPTION_REAL, &s->min_time, "S", "seconds for each repetition (default: 0.5)", 0},
      {"--kv", MOI_OPTION_TEXT, &s->kv, "N,...", "keys of a sequence that attention decodes (default: 4096)", 0},
      {"--batch", MOI_OPTION_TEXT, &s->batch, "N,...", "sequences that it decodes in a call (default: 1,8)", 0},
      {"--kv-format", MOI_OPTION_TEXT, &s->kv_format, "NAME,...", "native (default), f32, f16, bf16, fp8, q8_0", 0},
      {"--page-size", MOI_OPTION_UINT, &s->page_size, "N", "tokens of a page of the KV cache (default: no pages)", 0},
      {"--launches", MOI_OPTION_FLAG, &s->launches, nullptr, "on CUDA: launch each kernel, not a graph of the call", 0},
      {"--operands", MOI_OPTION_TEXT, &s->operands, "DIR", "write those of the first row, and its result, into DIR", 0},
      {"--memory", MOI_OPTION_REAL, &s->memory_gb, "GB", "for weights (default and bound: 60 % of what is free)", 0},
  };
  int n_positional, n = sizeof options / sizeof *options;
  int status = moi_options_parse(&command, options, n, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (s->weights && options[0].given) return moi_usage_error("bench", "--weights and --preset exclude each other");
  if (s->weights && options[6].given) return moi_usage_error("bench", "--format: a file has its own");
  if (!s->weights && options[2].given) return moi_usage_error("bench", "--layer goes with --weights");
  if (s->page_size > 1 << 20) return moi_usage_error("bench", "--page-size: at most 1048576");
  if (s->device > UINT32_MAX) return moi_usage_error("bench", "--device: there are not so many");
  if (s->threads > 1024) return moi_usage_error("bench", "--threads: at most 1024");
  if (!s->repetitions || s->repetitions > 1000) return moi_usage_error("bench", "--repetitions: 1 to 1000");
  if (!s->preset) s->preset = "qwen3-30b-a3b";
  return -1;
}

std::string command_line(int argc, char **argv) {
  std::string out = "moiety bench";
  for (int i = 0; i < argc; i++) out += std::string(" ") + argv[i];
  return out;
}

void add_context(const std::string &command, uint32_t threads, const std::string &layers) {
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  moi_device_get(MOI_BACKEND_CPU, 0, &info);
  uint32_t v = moi_version();
  benchmark::AddCustomContext("device", info.name);
  benchmark::AddCustomContext("isa", info.driver);
  if (info.memory) benchmark::AddCustomContext("memory_gb", text("%.1f", double(info.memory) / 1e9));
  benchmark::AddCustomContext("threads", std::to_string(threads));
  benchmark::AddCustomContext("moiety_version", std::to_string(v >> 16) + "." + std::to_string((v >> 8) & 255) + "." +
                                                    std::to_string(v & 255));
  benchmark::AddCustomContext("git_commit", MOI_GIT_COMMIT);
  benchmark::AddCustomContext("command", command);
  benchmark::AddCustomContext("layers", layers);
  benchmark::AddCustomContext("peak_isa", peak.isa);
  benchmark::AddCustomContext("peak_read_gbs", text("%.2f", peak.read_bytes / 1e9));
  benchmark::AddCustomContext("peak_blocks_gbs", text("%.2f", peak.block_bytes / 1e9));
  benchmark::AddCustomContext("peak_f32_gflops", text("%.1f", peak.ops[MOI_PEAK_F32] / 1e9));
  benchmark::AddCustomContext("peak_int8_gops", text("%.1f", peak.ops[MOI_PEAK_INT8] / 1e9));
  if (peak.ops[MOI_PEAK_MADDWD] > 0) {
    benchmark::AddCustomContext("peak_maddwd_gops", text("%.1f", peak.ops[MOI_PEAK_MADDWD] / 1e9));
    benchmark::AddCustomContext("peak_maddubsw_gops", text("%.1f", peak.ops[MOI_PEAK_MADDUBSW] / 1e9));
  }
  if (peak.ops[MOI_PEAK_I8MM] > 0)
    benchmark::AddCustomContext("peak_i8mm_gops", text("%.1f", peak.ops[MOI_PEAK_I8MM] / 1e9));
  benchmark::AddCustomContext("peak_bf16_gflops", text("%.1f", peak.ops[MOI_PEAK_BF16] / 1e9));
}

// A device beside the CPU: what it is, and what it gives.
void add_device(moi_backend backend, uint32_t index, moi_device *device) {
  moi_device_info info = MOI_DEVICE_INFO_INIT;
  const std::string name = moi_backend_name(backend);
  if (moi_device_get(backend, index, &info)) return;
  const double read = moi_device_read_rate(device);
  std::printf("%s: %s: memory: %.1f GB/s in order; compute:", name.c_str(), info.name, read / 1e9);
  const struct {
    moi_peak_kind kind;
    const char *name, *unit, *context;
  } kinds[] = {{MOI_PEAK_F32, "f32", "GFLOP/s", "_peak_f32_gflops"},
               {MOI_PEAK_BF16, "bf16 mma", "GFLOP/s", "_peak_bf16_gflops"},
               {MOI_PEAK_F16, "f16 mma", "GFLOP/s", "_peak_f16_gflops"},
               {MOI_PEAK_INT8, "int8 mma", "GOP/s", "_peak_int8_gops"},
               {MOI_PEAK_FP8, "fp8 mma", "GFLOP/s", "_peak_fp8_gflops"}};
  for (const auto &one : kinds) {
    const double ops = moi_device_ops_rate(device, one.kind);
    if (ops <= 0 && one.kind != MOI_PEAK_F32) continue;
    std::printf("%s %.0f %s %s", one.kind == MOI_PEAK_F32 ? "" : ",", ops / 1e9, one.unit, one.name);
    benchmark::AddCustomContext(name + one.context, text("%.1f", ops / 1e9));
  }
  std::printf("\n");
  benchmark::AddCustomContext(name + "_device", info.name);
  benchmark::AddCustomContext(name + "_driver", info.driver);
  benchmark::AddCustomContext(name + "_features", info.features);
  benchmark::AddCustomContext(name + "_memory_gb", text("%.1f", double(info.memory) / 1e9));
  benchmark::AddCustomContext(name + "_peak_read_gbs", text("%.2f", read / 1e9));
}

} // namespace

extern "C" int moi_command_bench(int argc, char **argv) {
  Settings s;
  std::string command = command_line(argc, argv);
  int status = parse(argc, argv, &s);
  if (status >= 0) return status;
  std::vector<uint32_t> tokens;
  std::vector<std::pair<moi_op, std::string>> ops;
  std::vector<uint32_t> kv, batch;
  std::vector<moi_format> kv_formats;
  if ((status = parse_numbers("--tokens", s.tokens, 1 << 20, &tokens)) || (status = parse_ops(s.op, &ops)) ||
      (status = parse_numbers("--kv", s.kv, 1 << 24, &kv)) ||
      (status = parse_numbers("--batch", s.batch, 64, &batch)) ||
      (status = parse_kv_formats(s.kv_format, &kv_formats)))
    return status;
  bool attention = false;
  for (const auto &op : ops) attention = attention || op.first == MOI_OP_ATTENTION;
  for (const auto &op : ops)
    if (op.first == MOI_OP_GEMM && s.weights)
      return moi_usage_error("bench", "--op: gemm goes with a preset, not with --weights");
  if (attention && s.weights) {
    if (std::strcmp(s.op, "all"))
      return moi_usage_error("bench", "--op: attention goes with a preset, not with --weights");
    attention = false;
  }

  if (s.json) { // Google Benchmark ends the program without a word about why
    std::FILE *file = std::fopen(s.json, "a");
    if (!file) {
      std::fprintf(stderr, "moiety bench: --json: %s: cannot be written\n", s.json);
      return 1;
    }
    std::fclose(file);
  }

  std::unique_ptr<moi_context, ContextFree> reference;
  if (open_context(MOI_BACKEND_CPU, 0, static_cast<uint32_t>(s.threads), &reference)) {
    std::fprintf(stderr, "moiety bench: %s\n", moi_last_error());
    return 1;
  }
  std::vector<moi_backend> backends;
  bool all = !std::strcmp(s.backend, "all");
  if (all) backends = {MOI_BACKEND_CPU, MOI_BACKEND_CUDA, MOI_BACKEND_VULKAN};
  else
    for (const std::string &name : split(s.backend)) {
      moi_backend backend;
      if ((status = moi_find_backend("bench", name.c_str(), &backend))) return status;
      backends.push_back(backend);
    }
  std::vector<std::unique_ptr<moi_context, ContextFree>> contexts;
  std::vector<moi_backend> opened;
  for (moi_backend backend : backends) {
    std::unique_ptr<moi_context, ContextFree> context;
    if (open_context(backend, static_cast<uint32_t>(s.device), static_cast<uint32_t>(s.threads), &context)) {
      std::fprintf(stderr, "moiety bench: %s: %s\n", moi_backend_name(backend), moi_last_error());
      if (!all) return 1;
      continue;
    }
    contexts.push_back(std::move(context));
    opened.push_back(backend);
  }

  uint64_t memory = moi_memory_available() * 6 / 10;
  if (s.memory_gb > 0 && s.memory_gb * 1e9 < double(memory)) memory = uint64_t(s.memory_gb * 1e9);
  std::vector<std::unique_ptr<moi_bench_layer, LayerFree>> layers;
  bool only_attention = attention && ops.size() == 1;
  if (!only_attention && (status = open_layers(s, memory, &layers))) return status;

  uint32_t threads = static_cast<uint32_t>(s.threads);
  if (!threads) {
    moi_device_info info = MOI_DEVICE_INFO_INIT;
    threads = moi_device_get(MOI_BACKEND_CPU, 0, &info) ? 1 : info.n_workers;
  }
  std::fprintf(stderr, "moiety bench: measuring the peaks of this machine, %u threads\n", threads);
  uint64_t block = layers.empty() ? uint64_t(4) << 20 : moi_bench_layer_expert_bytes(layers[0].get());
  moi_peak_measure(threads, moi_memory_available() / 2, block, &peak);
  std::printf(
      "memory: %.1f GB/s in order, %.1f GB/s in random blocks of %.1f MB; compute (%s, %u threads): %.0f GFLOP/s f32",
      peak.read_bytes / 1e9, peak.block_bytes / 1e9, double(block) / 1e6,
      peak.isa, threads, peak.ops[MOI_PEAK_F32] / 1e9);
  if (peak.ops[MOI_PEAK_INT8] > 0) std::printf(", %.0f GOP/s int8", peak.ops[MOI_PEAK_INT8] / 1e9);
  if (peak.ops[MOI_PEAK_I8MM] > 0) std::printf(", %.0f GOP/s int8 SMMLA", peak.ops[MOI_PEAK_I8MM] / 1e9);
  if (peak.ops[MOI_PEAK_BF16] > 0) std::printf(", %.0f GFLOP/s bf16", peak.ops[MOI_PEAK_BF16] / 1e9);
  std::printf("\n");
  std::unique_ptr<moi_probe, ProbeFree> own_probe(probe = moi_probe_open(threads, moi_memory_available() / 8, &peak));

  std::vector<Row> rows;
  std::vector<std::unique_ptr<moi_bench_row, RowFree>> owned;
  std::vector<std::unique_ptr<moi_bench_attention, AttentionFree>> owned_attention;
  size_t width = 20;
  std::string sizes;
  for (const auto &layer : layers) {
    sizes += std::string(sizes.empty() ? "" : "; ") + moi_bench_layer_text(layer.get());
    for (const auto &op : ops)
      for (size_t b = 0; b < opened.size() && op.first != MOI_OP_ATTENTION; b++)
        for (uint32_t n : tokens) {
          moi_bench_row *row = nullptr;
          if (moi_bench_row_open(layer.get(), op.first, op.second == "select", n, contexts[b].get(), reference.get(), s.kernel,
                                 &row)) {
            std::fprintf(stderr, "moiety bench: %s, %s, %s: %s\n", moi_bench_layer_name(layer.get()), op.second.c_str(),
                         moi_backend_name(opened[b]), moi_last_error());
            failed = true;
            continue;
          }
          owned.emplace_back(row);
          moi_status ignored;
          moi_device *device = moi_device_of(contexts[b].get(), &ignored);
          Row r = {layer.get(), row, nullptr, "", device, MOI_PEAK_F32, ""};
          set_compute(&r, moi_bench_row_serving(row), moi_bench_row_needs(row));
          r.name = op.second + "/" + moi_backend_name(opened[b]) + "/" + moi_bench_row_kernel(row) + "/" +
                   moi_bench_layer_format(layer.get()) + "/" + moi_bench_layer_name(layer.get()) + "/tokens:" +
                   std::to_string(n);
          if (op.first == MOI_OP_GEMM) {
            uint32_t rows_of_w, depth;
            moi_bench_row_size(row, &rows_of_w, &depth);
            r.name += "/n:" + std::to_string(rows_of_w) + "/k:" + std::to_string(depth);
          }
          if (r.name.size() > width) width = r.name.size();
          rows.push_back(r);
        }
  }
  if (attention) {
    AttentionRows asked = {kv, batch, tokens, kv_formats, static_cast<uint32_t>(s.page_size), memory, s.kernel};
    for (const std::string &name : split(s.preset)) {
      const moi_preset *preset;
      if ((status = moi_find_preset("bench", name.c_str(), &preset))) return status;
      sizes += std::string(sizes.empty() ? "" : "; ") + preset->name + ": attention over " +
               (preset->n_attention ? "several random KV caches" : "nothing that is built in");
      for (size_t b = 0; b < opened.size(); b++)
        open_attention(preset, opened[b], contexts[b].get(), reference.get(), asked, &owned_attention, &rows);
    }
    for (const Row &r : rows) width = std::max(width, r.name.size());
  }
  if (rows.empty()) return 1;
  for (const Row &r : rows)
    if (s.launches && r.attention) moi_bench_attention_launch(r.attention);
    else if (s.launches) moi_bench_row_launch(r.row);
  if (s.operands && rows[0].attention) moi_bench_attention_dump(rows[0].attention, s.operands);
  else if (s.operands) moi_bench_row_dump(rows[0].row, s.operands);
  add_context(command, threads, sizes);
  for (size_t b = 0; b < opened.size(); b++) {
    moi_status ignored;
    if (moi_device *device = moi_device_of(contexts[b].get(), &ignored)) add_device(opened[b], static_cast<uint32_t>(s.device), device);
  }
  for (const Row &r : rows)
    benchmark::RegisterBenchmark(r.name.c_str(), [r](benchmark::State &state) { measure(state, r); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);

  std::vector<std::string> words = {"moiety", text("--benchmark_min_time=%g", s.min_time > 0 ? s.min_time : 0.001),
                                    "--benchmark_repetitions=" + std::to_string(s.repetitions)};
  if (s.json) words.push_back(std::string("--benchmark_out=") + s.json);
  std::vector<char *> args;
  for (std::string &word : words) args.push_back(&word[0]);
  int n_args = static_cast<int>(args.size());
  benchmark::Initialize(&n_args, args.data());
  Table table(width);
  Json json;
  benchmark::RunSpecifiedBenchmarks(&table, s.json ? &json : nullptr);
  benchmark::Shutdown();
  return failed ? 1 : 0;
}
