#include "peer.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace {

const char *const usage =
    "ggml-peer: what ggml takes for the work of moiety bench; rows are experts/ggml/mul_mat_id/...,\n"
    "attention/ggml/flash_attn_ext/... and select/ggml/top_k/...\n\n"
    "  --preset NAME,...   models (default: qwen3-30b-a3b)\n"
    "  --op OP,...         of experts (default), attention, select: those of moiety bench\n"
    "  --format NAME,...   moiety's names of weight formats (default: q4_k,q8_0,bf16). Names of one ggml type are "
    "measured\n"
    "                      once and have a row each: q4_k:int8_32 stands beside moiety's row of quantised activations.\n"
    "                      select: a part of a row's name, the preset's own unless given\n"
    "  --tokens N,...      of a call (default: 1,8,64,512); attention: of a prompt, those above 16\n"
    "  --kv N,...          keys of a sequence that attention decodes (default: 4096)\n"
    "  --batch N,...       sequences that it decodes in a call (default: 1,8)\n"
    "  --kv-format NAME,.. of bf16 (default), f16, q8_0, f32\n"
    "  --threads N         of the CPU (default: one for each core)\n"
    "  --repack            experts' weights in the CPU's interleaved layout: rows of ggml-repack\n"
    "  --variant NAME      the CPU library libggml-cpu-NAME.so instead of the best: rows of ggml-NAME\n"
    "  --device NAME       CPU (default), or another of ggml's, as Vulkan0: rows of ggml-vulkan0\n"
    "  --experts N         fewer experts than the model has: for tests\n"
    "  --repetitions R     (default: 3), of --min-time S seconds (default: 0.2) each\n"
    "  --presets FILE      what `moiety presets --json` prints (default: build/bin/moiety is asked)\n"
    "  --peaks FILE        a result of moiety bench from the same run: its peaks are the limits\n"
    "  --json FILE         results for moiety compare --work and moiety report\n";

Options parse(int argc, char **argv) {
  Options o;
  const std::pair<const char *, std::string *> texts[] = {
      {"--preset", &o.preset},   {"--op", &o.op},         {"--format", &o.format}, {"--tokens", &o.tokens},
      {"--device", &o.device},   {"--kv", &o.kv},         {"--batch", &o.batch},   {"--kv-format", &o.kv_format},
      {"--presets", &o.presets}, {"--peaks", &o.peaks},   {"--json", &o.json},     {"--variant", &o.variant}};
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
      if (arg == n.first) {
        const std::vector<int> one = numbers_of(arg, value);
        if (one.size() != 1) die(arg + ": '" + value + "' is not one number");
        *n.second = one[0], known = true;
      }
    if (arg == "--min-time") {
      char *end;
      o.min_time = std::strtod(value.c_str(), &end);
      if (value.empty() || *end || !(o.min_time >= 0 && o.min_time < 1e6))
        die("--min-time: '" + value + "' is no time in seconds");
      known = true;
    }
    if (!known) die("no option " + arg + "; --help lists what there is");
  }
  if ((o.repack || !o.variant.empty()) && o.device != "CPU") die("--repack and --variant are of the CPU");
  if (!o.threads) o.threads = int(std::max(1u, std::thread::hardware_concurrency()));
  return o;
}

template <class F> F proc(ggml_backend_reg_t reg, const char *name) {
  return F(ggml_backend_reg_get_proc_address(reg, name));
}

// The file that a backend's code is in.
std::string file_of(ggml_backend_reg_t reg) {
  Dl_info info;
  void *address = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
  return address && dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

// Of the CPU libraries ggml loads the best that the machine can run; here another takes its place.
void load_variant(const std::string &name) {
  ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
  const std::string best = reg ? file_of(reg) : "";
  if (best.find("libggml-cpu-") == std::string::npos) die("--variant: this ggml has one CPU library only", 1);
  const std::string other = best.substr(0, best.find("libggml-cpu-")) + "libggml-cpu-" + name + ".so";
  if (other == best) return;
  ggml_backend_unload(reg);
  if (!ggml_backend_load(other.c_str())) die("--variant: " + other + " cannot be loaded, or not run here", 1);
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

bool has(ggml_backend_reg_t reg, const char *feature) {
  auto get = proc<ggml_backend_get_features_t>(reg, "ggml_backend_get_features");
  for (ggml_backend_feature *f = get ? get(reg) : nullptr; f && f->name; f++)
    if (!std::strcmp(f->name, feature)) return std::strcmp(f->value, "0") != 0;
  return false;
}

Engine engine_of(const Options &o, ggml_backend_t backend) {
  Engine e = {};
  e.backend = backend;
  e.device = ggml_backend_get_device(backend);
  e.cpu = o.device == "CPU";
  e.repack = o.repack;
  e.weights = o.repack ? repacked(e.device) : ggml_backend_get_default_buffer_type(backend);
  e.who = "ggml" + (e.cpu ? "" : "-" + o.device) + (o.variant.empty() ? "" : "-" + o.variant) +
          (o.repack ? "-repack" : "");
  for (char &c : e.who) c = char(std::tolower(c));
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(e.device);
  e.vnni = has(reg, "AVX512_VNNI") || has(reg, "AVX_VNNI") || has(reg, "DOTPROD");
  e.bf16 = has(reg, "AVX512_BF16");
  if (!e.cpu) return e;
  e.library = file_of(reg);
  e.library.erase(0, e.library.rfind('/') + 1);
  return e;
}

Owned<cJSON> presets_of(const Options &o) {
  const bool ask = o.presets.empty();
  const std::string what = ask ? "build/bin/moiety presets --json" : o.presets;
  FILE *file = ask ? popen(what.c_str(), "r") : std::fopen(what.c_str(), "r");
  if (!file) die(what + ": cannot be read");
  std::string text;
  char part[4096];
  for (size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
  if (ask) pclose(file);
  else std::fclose(file);
  Owned<cJSON> json(cJSON_Parse(text.c_str()));
  if (!json) die(what + ": not JSON");
  return json;
}

const cJSON *preset_of(const cJSON *presets, const std::string &name) {
  const cJSON *p;
  cJSON_ArrayForEach(p, presets) if (text_of(p, "name") == name) return p;
  die("no preset '" + name + "', see moiety presets");
}

} // namespace

int main(int argc, char **argv) {
  const Options o = parse(argc, argv);
  const std::pair<const char *, decltype(&experts)> all[] = {
      {"experts", experts}, {"attention", attention}, {"select", select}};
  std::vector<decltype(&experts)> ops;
  for (const std::string &word : split(o.op)) {
    const size_t before = ops.size();
    for (const auto &op : all)
      if (word == op.first) ops.push_back(op.second);
    if (ops.size() == before) die("--op: no '" + word + "'; there are experts, attention, select");
    if (o.repack && word != "experts") die("--repack is a layout of experts' weights, not for --op " + word);
  }
  ggml_backend_load_all();
  if (!o.variant.empty()) load_variant(o.variant);
  Owned<ggml_backend> backend(ggml_backend_init_by_name(o.device.c_str(), nullptr));
  if (!backend) {
    std::string there;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++)
      there += std::string(i ? ", " : "") + ggml_backend_dev_name(ggml_backend_dev_get(i));
    die("--device: no '" + o.device + "'; there are " + there);
  }
  const Engine e = engine_of(o, backend.get());
  if (e.cpu) set_threads(backend.get(), o.threads);
  const Owned<cJSON> presets = presets_of(o);
  Results results(o, e);
  for (const std::string &name : split(o.preset)) {
    const cJSON *preset = preset_of(presets.get(), name);
    for (const auto op : ops) op(o, e, preset, &results);
  }
  const bool bad = results.failed || results.empty();
  if (!o.json.empty()) results.write(o.json);
  return bad;
}
