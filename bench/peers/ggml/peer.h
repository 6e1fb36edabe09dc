// ggml through its public API, on the work of `moiety bench`: the same shapes and numbers, caches and weights that are cold.
// Rows have the names and the JSON of moiety bench. docs/performance.md says how it is built and what is measured; --help
// lists the options.
#ifndef MOI_BENCH_PEERS_GGML_PEER_H
#define MOI_BENCH_PEERS_GGML_PEER_H

#include <cjson/cJSON.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Options {
  std::string preset = "qwen3-30b-a3b", op = "experts", tokens = "1,8,64,512",
              device = "CPU", kv = "4096", batch = "1,8", kv_format = "bf16";
  std::string format; // "": of experts q4_k,q8_0,bf16, of select the preset's own name
  std::string presets, peaks, json, variant, command = "ggml-peer";
  int threads = 0, experts = 0, repetitions = 3;
  double min_time = 0.2;
  bool repack = false;
};

// What is not measured, and why.
struct LeftOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void die(const std::string &why, int status = 2);

struct Free {
  void operator()(ggml_context *c) const { ggml_free(c); }
  void operator()(ggml_backend_buffer *b) const { ggml_backend_buffer_free(b); }
  void operator()(ggml_backend *b) const { ggml_backend_free(b); }
  void operator()(ggml_gallocr *g) const { ggml_gallocr_free(g); }
  void operator()(cJSON *j) const { cJSON_Delete(j); }
};
template <class T> using Owned = std::unique_ptr<T, Free>;

Owned<ggml_context> context(size_t tensors, size_t graphs = 0);
std::vector<std::string> split(const std::string &list);
std::vector<int> numbers_of(const std::string &option, const std::string &list);

// Of a preset, as `moiety presets --json` has it; 0, false and "" where it is not there.
double number_of(const cJSON *object, const std::string &name);
bool truth_of(const cJSON *object, const char *name);
std::string text_of(const cJSON *object, const char *name);

// Who computes.
struct Engine {
  ggml_backend_t backend;
  ggml_backend_dev_t device;
  ggml_backend_buffer_type_t weights; // where those of experts lie
  std::string who;                    // "ggml", "ggml-repack", "ggml-haswell", "ggml-vulkan0"
  std::string library;                // the CPU's, by its file's name; "" for devices
  bool cpu, repack, vnni, bf16;
};

struct Row {
  std::string name;
  ggml_type type;
  double bytes, flops; // of a call
  double error, tolerance;
  std::vector<std::pair<std::string, double>> numbers;  // further members
  std::vector<std::pair<std::string, std::string>> texts;
};

class Calls;

// Rows as moiety bench writes them.
class Results {
public:
  int failed = 0;

  Results(const Options &o, const Engine &e);
  bool empty() const { return !cJSON_GetArraySize(rows_.get()); }
  void fail(const std::string &name, const std::string &why);
  // Measures calls whose results are row.error off, and adds the row under each name; throws where that is more than allowed.
  void add(Row row, const std::vector<std::string> &names, Calls &calls, bool whole_rounds);
  void write(const std::string &path);

private:
  void add(const Row &row, const std::vector<double> &times); // times: of each repetition, of a call
  double peak(const std::string &what) const { return number_of(context_.get(), prefix_ + "peak_" + what) * 1e9; }
  double compute(ggml_type type, std::string *label) const;
  cJSON *entry(const std::string &name, int index);

  const Options &o_;
  const Engine &e_;
  Owned<cJSON> rows_, context_;
  std::string prefix_;
};

// A graph for each of the calls that are gone through in turn; memory between nodes is shared, for one runs at a time.
class Calls {
public:
  Calls(const Engine &e, std::vector<ggml_cgraph *> graphs);
  double run(int i); // seconds of call i, modulo their number
  // Seconds of a call in each repetition: of --min-time at least, in whole rounds where calls differ.
  std::vector<double> measure(const Options &o, bool whole_rounds);

private:
  ggml_backend_t backend_;
  std::vector<ggml_cgraph *> graphs_;
  Owned<ggml_gallocr> memory_;
  int next_ = 0;
};

// A type by moiety's name of a format: those of caches have no suffix.
ggml_type type_of(const std::string &option, const std::string &format, bool cpu);

// The numbers of bench/rig: rows of activations, rounded to bf16.
std::vector<float> activations(int rows, int columns, uint64_t seed);
// How many calls there are, those of bench_layer.c.
int calls_for(int tokens, int sets);
// How far a result is off, of the norm; infinite where it is not a number.
double distance(const std::vector<double> &result, const std::vector<double> &truth);
// What is allowed.
double tolerance_of(ggml_type type);

void experts(const Options &o, const Engine &e, const cJSON *preset, Results *results);
void attention(const Options &o, const Engine &e, const cJSON *preset, Results *results);
void select(const Options &o, const Engine &e, const cJSON *preset, Results *results);

#endif
