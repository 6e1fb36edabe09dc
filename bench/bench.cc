// moiety bench: rows of layers on Google Benchmark, against the peaks of the same machine measured in the same run.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "bench/bench_layer.h"
#include "bench/commands.h"
#include "bench/memory.h"
#include "bench/options.h"
#include "bench/peak.h"

#ifndef MOI_GIT_COMMIT
#define MOI_GIT_COMMIT ""
#endif

namespace {

struct Settings {
  const char *preset = nullptr, *op = "moe", *tokens = "1,8,64,512", *backend = "all", *format = "native";
  const char *kernel = nullptr, *json = nullptr, *weights = nullptr;
  uint64_t threads = 0, layer = 0, repetitions = 1;
  double min_time = 0.5, memory_gb = 0;
};

struct Row {
  moi_bench_layer *layer;
  moi_bench_row *row;
  std::string name;
  double compute_peak;
  const char *compute_name;
};

moi_peak peak;
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

void measure(benchmark::State &state, const Row &r) {
  char error[512];
  if (filled != r.layer) { // rows of a layer follow each other
    if (filled) moi_bench_layer_drop(filled);
    filled = r.layer;
  }
  if (moi_bench_row_prepare(r.row, error, sizeof error)) {
    moi_bench_row_release(r.row);
    state.SkipWithError(error);
    return;
  }
  uint64_t i = 0;
  moi_status status = moi_bench_row_run(r.row, 1); // page in code and threads
  double bytes = 0, flops = 0;
  auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    (void)_;
    if (status) break;
    status = moi_bench_row_run(r.row, i++);
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
  state.counters["bytes_per_second"] = bytes / seconds;
  state.counters["flops_per_second"] = flops / seconds;
  state.counters["bandwidth_fraction"] = bytes / seconds / peak.read_bytes;
  state.counters["compute_fraction"] = flops / seconds / r.compute_peak;
  state.SetLabel(r.compute_name);
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

class Json : public benchmark::JSONReporter {
 public:
  void ReportRuns(const Runs &runs) override { benchmark::JSONReporter::ReportRuns(plain_names(runs)); }
};

class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(size_t width) : width_(static_cast<int>(width)) {}
  bool ReportContext(const Context &) override {
    std::printf("%-*s %12s %9s %8s %10s %8s\n", width_, "row", "time", "GB/s", "of peak", "GFLOP/s", "of peak");
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
      std::printf("%-*s %12s %9.2f %7.0f%% %10.1f %7.0f%%\n", width_, run.run_name.str().c_str(), time,
                  number(run, "bytes_per_second") / 1e9, 100 * number(run, "bandwidth_fraction"),
                  number(run, "flops_per_second") / 1e9, 100 * number(run, "compute_fraction"));
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

// Which of the peaks a kernel works against.
double compute_peak(const char *needs, const char **name) {
  if (!std::strcmp(needs, "avx512vnni") && peak.int8_ops > 0) {
    *name = "of int8 VNNI";
    return peak.int8_ops;
  }
  if (!std::strcmp(needs, "avx512bf16") && peak.bf16_flops > 0) {
    *name = "of bf16";
    return peak.bf16_flops;
  }
  *name = "of f32 FMA";
  return peak.f32_flops;
}

void log_line(void *, moi_log_level level, const char *line) {
  if (level <= MOI_LOG_WARNING) std::fprintf(stderr, "moiety: %s\n", line);
}

struct LayerFree {
  void operator()(moi_bench_layer *l) const { moi_bench_layer_free(l); }
};
struct RowFree {
  void operator()(moi_bench_row *r) const { moi_bench_row_free(r); }
};
struct ContextFree {
  void operator()(moi_context *c) const { moi_context_destroy(c); }
};

moi_status open_context(moi_backend backend, uint32_t threads, std::unique_ptr<moi_context, ContextFree> *out) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context = nullptr;
  desc.backend = backend;
  desc.n_workers = backend == MOI_BACKEND_CPU ? threads : 0;
  desc.log = log_line;
  moi_status status = moi_context_create(&desc, &context);
  out->reset(context);
  return status;
}

int parse_numbers(const char *list, std::vector<uint32_t> *out) {
  for (const std::string &word : split(list)) {
    char *end = nullptr;
    unsigned long n = std::strtoul(word.c_str(), &end, 10);
    if (word.empty() || *end || n < 1 || n > 1u << 20)
      return moi_usage_error("bench", "--tokens: '%s' is no number of 1 to 1048576", word.c_str());
    out->push_back(static_cast<uint32_t>(n));
  }
  return 0;
}

int parse_ops(const char *list, std::vector<std::pair<moi_op, std::string>> *out) {
  const std::vector<std::pair<moi_op, std::string>> all = {
      {MOI_OP_ROUTE, "route"}, {MOI_OP_EXPERTS, "experts"}, {MOI_OP_MOE, "moe"}};
  for (const std::string &word : split(list)) {
    bool found = false;
    for (const auto &op : all)
      if (word == op.second || word == "all") {
        out->push_back(op);
        found = true;
      }
    if (!found) return moi_usage_error("bench", "--op: no '%s'; there are route, experts, moe, all", word.c_str());
  }
  return 0;
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
      moi_format format = MOI_FORMAT_NONE;
      if (int status = moi_find_preset("bench", name.c_str(), &preset)) return status;
      if (format_name != "native")
        if (int status = moi_find_format("bench", format_name.c_str(), &format)) return status;
      moi_bench_layer *l = moi_bench_layer_of_preset(preset, format, memory, error, sizeof error);
      if (!l) {
        std::fprintf(stderr, "moiety bench: %s\n", error);
        return 1;
      }
      out->emplace_back(l);
    }
  return 0;
}

int parse(int argc, char **argv, Settings *s) {
  static const moi_command command = {
      "bench", "time, GB/s and the fraction of this device's measured peak",
      "Rows are named op/backend/kernel/format/preset/tokens:N. Every iteration has other tokens and other experts, "
      "and\n"
      "the weights are there several times over (2 GB at least, where memory allows), so that they come from memory, "
      "as\n"
      "in a model. bytes: the weights of the experts that a call touches, and its activations. Fractions are of the "
      "peaks\n"
      "measured before the rows, on as many threads: reading memory in order, and multiply-adds of the kind that the\n"
      "kernel uses. Each result is checked against the reference before it is timed; a wrong one fails the row, and\n"
      "the exit status is 1.\n",
      nullptr};
  moi_option options[] = {
      {"--preset", MOI_OPTION_TEXT, &s->preset, "NAME,...", "models, see moiety presets (default: qwen3-30b-a3b)", 0},
      {"--weights", MOI_OPTION_TEXT, &s->weights, "FILE", "a GGUF or safetensors checkpoint instead of a preset", 0},
      {"--layer", MOI_OPTION_UINT, &s->layer, "N", "the checkpoint's layer (default: 0)", 0},
      {"--op", MOI_OPTION_TEXT, &s->op, "OP,...", "of route, experts, moe; all (default: moe)", 0},
      {"--tokens", MOI_OPTION_TEXT, &s->tokens, "N,...", "tokens of a call (default: 1,8,64,512)", 0},
      {"--backend", MOI_OPTION_TEXT, &s->backend, "NAME,...", "of cpu, cuda, vulkan; all that are here (default)", 0},
      {"--format", MOI_OPTION_TEXT, &s->format, "NAME,...", "weight formats, or native: the preset's own (default)", 0},
      {"--threads", MOI_OPTION_UINT, &s->threads, "N", "CPU threads (default: one for each core)", 0},
      {"--kernel", MOI_OPTION_TEXT, &s->kernel, "NAME", "a row of the kernel list (default: the library chooses)", 0},
      {"--json", MOI_OPTION_TEXT, &s->json, "FILE", "write the results for compare and tables", 0},
      {"--repetitions", MOI_OPTION_UINT, &s->repetitions, "R", "of every row; the median counts (default: 1)", 0},
      {"--min-time", MOI_OPTION_REAL, &s->min_time, "S", "seconds for each repetition (default: 0.5)", 0},
      {"--memory", MOI_OPTION_REAL, &s->memory_gb, "GB", "for weights (default and bound: 60 % of what is free)", 0},
  };
  int n_positional, n = sizeof options / sizeof *options;
  int status = moi_options_parse(&command, options, n, argc, argv, &n_positional);
  if (status >= 0) return status;
  if (s->weights && options[0].given) return moi_usage_error("bench", "--weights and --preset exclude each other");
  if (s->weights && options[6].given) return moi_usage_error("bench", "--format: a file has its own");
  if (!s->weights && options[2].given) return moi_usage_error("bench", "--layer goes with --weights");
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
  benchmark::AddCustomContext("threads", std::to_string(threads));
  benchmark::AddCustomContext("moiety_version", std::to_string(v >> 16) + "." + std::to_string((v >> 8) & 255) + "." +
                                                    std::to_string(v & 255));
  benchmark::AddCustomContext("git_commit", MOI_GIT_COMMIT);
  benchmark::AddCustomContext("command", command);
  benchmark::AddCustomContext("layers", layers);
  benchmark::AddCustomContext("peak_isa", peak.isa);
  benchmark::AddCustomContext("peak_read_gbs", text("%.2f", peak.read_bytes / 1e9));
  benchmark::AddCustomContext("peak_blocks_gbs", text("%.2f", peak.block_bytes / 1e9));
  benchmark::AddCustomContext("peak_f32_gflops", text("%.1f", peak.f32_flops / 1e9));
  benchmark::AddCustomContext("peak_int8_gops", text("%.1f", peak.int8_ops / 1e9));
  benchmark::AddCustomContext("peak_bf16_gflops", text("%.1f", peak.bf16_flops / 1e9));
}

} // namespace

extern "C" int moi_command_bench(int argc, char **argv) {
  Settings s;
  std::string command = command_line(argc, argv);
  int status = parse(argc, argv, &s);
  if (status >= 0) return status;
  std::vector<uint32_t> tokens;
  std::vector<std::pair<moi_op, std::string>> ops;
  if ((status = parse_numbers(s.tokens, &tokens)) || (status = parse_ops(s.op, &ops))) return status;

  if (s.json) { // Google Benchmark ends the program without a word about why
    std::FILE *file = std::fopen(s.json, "a");
    if (!file) {
      std::fprintf(stderr, "moiety bench: --json: %s: cannot be written\n", s.json);
      return 1;
    }
    std::fclose(file);
  }

  std::unique_ptr<moi_context, ContextFree> reference;
  if (open_context(MOI_BACKEND_CPU, static_cast<uint32_t>(s.threads), &reference)) {
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
    if (open_context(backend, static_cast<uint32_t>(s.threads), &context)) {
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
  if ((status = open_layers(s, memory, &layers))) return status;

  uint32_t threads = static_cast<uint32_t>(s.threads);
  if (!threads) {
    moi_device_info info = MOI_DEVICE_INFO_INIT;
    threads = moi_device_get(MOI_BACKEND_CPU, 0, &info) ? 1 : info.n_workers;
  }
  std::fprintf(stderr, "moiety bench: measuring the peaks of this machine, %u threads\n", threads);
  moi_peak_measure(threads, moi_memory_available() / 2, moi_bench_layer_expert_bytes(layers[0].get()), &peak);
  std::printf(
      "memory: %.1f GB/s in order, %.1f GB/s in random blocks of %.1f MB; compute (%s, %u threads): %.0f GFLOP/s f32",
      peak.read_bytes / 1e9, peak.block_bytes / 1e9, double(moi_bench_layer_expert_bytes(layers[0].get())) / 1e6,
      peak.isa, threads, peak.f32_flops / 1e9);
  if (peak.int8_ops > 0) std::printf(", %.0f GOP/s int8", peak.int8_ops / 1e9);
  if (peak.bf16_flops > 0) std::printf(", %.0f GFLOP/s bf16", peak.bf16_flops / 1e9);
  std::printf("\n");

  std::vector<Row> rows;
  std::vector<std::unique_ptr<moi_bench_row, RowFree>> owned;
  size_t width = 20;
  std::string sizes;
  for (const auto &layer : layers) {
    sizes += std::string(sizes.empty() ? "" : "; ") + moi_bench_layer_text(layer.get());
    for (const auto &op : ops)
      for (size_t b = 0; b < opened.size(); b++)
        for (uint32_t n : tokens) {
          moi_bench_row *row = nullptr;
          if (moi_bench_row_open(layer.get(), op.first, n, contexts[b].get(), reference.get(), s.kernel, &row)) {
            std::fprintf(stderr, "moiety bench: %s, %s, %s: %s\n", moi_bench_layer_name(layer.get()), op.second.c_str(),
                         moi_backend_name(opened[b]), moi_last_error());
            failed = true;
            continue;
          }
          owned.emplace_back(row);
          Row r = {layer.get(), row, "", 0, ""};
          r.compute_peak = compute_peak(moi_bench_row_needs(row), &r.compute_name);
          r.name = op.second + "/" + moi_backend_name(opened[b]) + "/" + moi_bench_row_kernel(row) + "/" +
                   moi_bench_layer_format(layer.get()) + "/" + moi_bench_layer_name(layer.get()) + "/tokens:" +
                   std::to_string(n);
          if (r.name.size() > width) width = r.name.size();
          rows.push_back(r);
        }
  }
  if (rows.empty()) return 1;
  add_context(command, threads, sizes);
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
