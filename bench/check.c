/* moiety check: every kernel that runs here against the reference. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "bench/check.h"
#include "bench/commands.h"
#include "bench/options.h"
#include "bench/rig/device.h"
#include "core/format.h"

#if defined(MOI_HAVE_VULKAN)
#include <moiety_vulkan.h>
#endif

enum { MAX_KERNELS = 1024, MAX_STATS = 1024 };
#define CHOSEN "chosen" /* not a row: what a plan without a name takes */

typedef struct stat {
  char name[96];
  uint32_t cases, failed, excused, not_served;
  double worst;
} stat;

typedef struct check {
  moi_backend backend;
  const char *backend_name, *kernel, *op, *preset_name;
  const moi_preset *preset;
  moi_format format;
  uint64_t seed, only, device;
  int quick, only_given, verbose;
  moi_context *reference;
  moi_context *pool;   /* as most callers have it: for the plans that choose for themselves */
  moi_context *serial; /* one worker: for the named rows, which need not pay for waking threads */
  moi_context *other;  /* CPU: another number of workers, bodies in another order */
  stat stats[MAX_STATS];
  uint32_t n_stats, failed, ran, n_cases;
  struct timespec start;
} check;

static char current[512]; /* the command that repeats what runs now */

#if !defined(_WIN32)
static void on_fault(int signal_number) {
  static const char head[] = "\nFAIL: the kernel touched memory outside its operands (signal caught)\n  repeat: ";
  ssize_t ignored = write(1, head, sizeof head - 1);
  ignored = write(1, current, strlen(current));
  ignored = write(1, "\n", 1);
  (void)ignored;
  (void)signal_number;
  _exit(1);
}
#endif

/* A pool that runs its bodies one after another, the last one first. */
static void backwards(void *user, uint32_t n, void (*body)(void *arg, uint32_t i), void *arg) {
  (void)user;
  while (n) body(arg, --n);
}

static stat *stat_of(check *ck, const char *op, const char *kernel) {
  char name[96];
  snprintf(name, sizeof name, "%-7s %-9s %s", ck->backend_name, op, kernel);
  for (uint32_t i = 0; i < ck->n_stats; i++)
    if (!strcmp(ck->stats[i].name, name)) return &ck->stats[i];
  if (ck->n_stats == MAX_STATS) return &ck->stats[MAX_STATS - 1];
  stat *s = &ck->stats[ck->n_stats++];
  memset(s, 0, sizeof *s);
  memcpy(s->name, name, sizeof name);
  return s;
}

static void fail(check *ck, stat *s, const char *what) {
  ck->failed++;
  s->failed++;
  printf("FAIL %s\n  repeat: %s\n", what, current);
  fflush(stdout);
}

/* The names that serve a case: rows of the list for one of its formats, and CHOSEN. */
static uint32_t kernels_for(const check *ck, const moi_case *c, const char **names) {
  uint32_t n = 0;
  moi_format formats[5] = {c->op == MOI_OP_GEMM ? c->gemm.format : c->experts.format, c->experts.down_format,
                           c->has_shared ? c->shared.format : MOI_FORMAT_NONE,
                           c->op == MOI_OP_ROUTE && c->route.hidden ? moi_or(c->route.router_type, MOI_FORMAT_F32)
                                                                    : MOI_FORMAT_NONE,
                           MOI_FORMAT_NONE};
  if (!ck->kernel || !strcmp(ck->kernel, CHOSEN)) names[n++] = CHOSEN;
  if (c->op == MOI_OP_ATTENTION && c->attention.task != MOI_RIG_ATTEND) return n; /* the rows do not differ in it */
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  for (uint32_t i = 0; !moi_kernel_get(ck->backend, i, &info) && n < MAX_KERNELS; i++) {
    int serves = info.op == c->op;
    if (info.op == MOI_OP_GEMM) serves = c->op == MOI_OP_ROUTE ? c->route.hidden != 0 : c->op != MOI_OP_ATTENTION;
    int fits = info.format == MOI_FORMAT_NONE || info.op != MOI_OP_GEMM;
    for (int f = 0; f < 5; f++) fits |= formats[f] && info.format == formats[f];
    int known = !strcmp(info.name, "ref") || (ck->kernel && strcmp(ck->kernel, info.name));
    for (uint32_t j = 0; j < n; j++) known |= !strcmp(names[j], info.name);
    if (serves && fits && info.runs_here && !known) names[n++] = info.name;
  }
  return n;
}

static moi_context *context_of(const check *ck, const char *kernel) {
  return !strcmp(kernel, CHOSEN) ? ck->pool : ck->serial;
}

static moi_status plan_of(const check *ck, const moi_case *c, const char *kernel, uint32_t flags, moi_plan **plan) {
  return moi_case_plan(c, context_of(ck, kernel), strcmp(kernel, CHOSEN) ? kernel : NULL, flags, plan);
}

/* Demands that the kernel's plans accept must be met. `first` is what a plan without demands has computed. */
static void check_promises(check *ck, moi_case *c, const char *kernel, stat *s, const moi_outputs *first) {
  const char *name = strcmp(kernel, CHOSEN) ? kernel : NULL;
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  char damage[160], text[320];
  moi_plan *plan;
  moi_outputs again;
  if (!plan_of(ck, c, kernel, MOI_DETERMINISTIC, &plan)) {
    moi_plan *other = NULL;
    moi_outputs a = moi_case_outputs(c, &arena);
    again = moi_case_outputs(c, &arena);
    if (name) a = *first; /* the same plan as before: its first run counts */
    else if (moi_case_run_guarded(c, plan, &a, damage, sizeof damage)) fail(ck, s, "a DETERMINISTIC plan does not run");
    if (moi_case_run_guarded(c, plan, &again, damage, sizeof damage) || !moi_case_same_bits(c, &a, &again))
      fail(ck, s, "DETERMINISTIC: the second run gives other bits");
    if (ck->other && !moi_case_plan(c, ck->other, name, MOI_DETERMINISTIC, &other)) {
      again = moi_case_outputs(c, &arena);
      if (moi_case_run_guarded(c, other, &again, damage, sizeof damage) || !moi_case_same_bits(c, &a, &again))
        fail(ck, s, "DETERMINISTIC: another number of workers gives other bits");
      moi_plan_destroy(other);
    }
    moi_plan_destroy(plan);
  }
  uint32_t flags = c->op == MOI_OP_GEMM ? c->gemm.flags : c->experts.flags;
  int alone = c->n_tokens > 1 && !c->hostile_offsets && c->attention.task == MOI_RIG_ATTEND;
  if (alone && !plan_of(ck, c, kernel, MOI_BATCH_INVARIANT, &plan)) {
    uint32_t tokens[3] = {0, flags & MOI_EXPERTS_ACCUMULATE || c->device_tokens ? 0 : c->n_tokens - 1, c->n_tokens / 2};
    uint32_t n_tokens = c->op == MOI_OP_ATTENTION ? 3 : 1 + (tokens[1] != 0);
    moi_outputs whole = moi_case_outputs(c, &arena);
    if (moi_case_run_guarded(c, plan, &whole, damage, sizeof damage))
      fail(ck, s, "a BATCH_INVARIANT plan does not run");
    moi_plan_destroy(plan);
    for (uint32_t i = 0; i < n_tokens; i++) {
      moi_case single;
      moi_case_token(c, tokens[i], &single);
      if (!single.n_tokens) { /* a row of no sequence */
        moi_case_free(&single);
        continue;
      }
      again = moi_case_outputs(&single, &arena);
      if (plan_of(ck, &single, kernel, MOI_BATCH_INVARIANT, &plan)) {
        fail(ck, s, moi_last_error());
      } else {
        if (moi_case_run_guarded(&single, plan, &again, damage, sizeof damage)) {
          fail(ck, s, moi_last_error());
        } else if (!moi_case_same_row(c, tokens[i], &whole, &again)) {
          snprintf(text, sizeof text, "BATCH_INVARIANT: token %u alone gives other bits than among %u", tokens[i],
                   c->n_tokens);
          fail(ck, s, text);
        }
        moi_plan_destroy(plan);
      }
      moi_case_free(&single);
    }
  }
  moi_arena_free(&arena);
}

/* Tables hold device addresses, which a Vulkan device may be without. */
static int wants_addresses(const moi_case *c) {
  return ((c->op == MOI_OP_GEMM ? c->gemm.flags : c->experts.flags) & MOI_EXPERTS_TABLES) != 0;
}

static int has_addresses(const check *ck) {
#if defined(MOI_HAVE_VULKAN)
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  if (ck->backend == MOI_BACKEND_VULKAN && !moi_vulkan_handles(ck->pool, &h)) return h.addresses != 0;
#else
  (void)ck;
#endif
  return 1;
}

static void check_kernel(check *ck, moi_case *c, const char *label, const char *kernel, const moi_outputs *expected,
                         int promises) {
  stat *s = stat_of(ck, label, kernel);
  moi_plan *plan;
  char damage[160] = "", text[600];
  moi_status status = plan_of(ck, c, kernel, 0, &plan);
  if (status == MOI_UNSUPPORTED && (strcmp(kernel, CHOSEN) || (wants_addresses(c) && !has_addresses(ck)))) {
    s->not_served++; /* the row wants other activations, say */
    return;
  }
  s->cases++;
  ck->ran++;
  if (status) {
    snprintf(text, sizeof text, "no plan: %s", moi_last_error());
    fail(ck, s, text);
    return;
  }
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  moi_outputs out = moi_case_outputs(c, &arena);
  status = moi_case_run_guarded(c, plan, &out, damage, sizeof damage);
  long long offset;
  const char *hit = moi_arena_damage(&arena, &offset);
  if (hit) snprintf(damage, sizeof damage, "wrote outside the buffer '%s', at byte %lld of it", hit, offset);
  uint32_t before = ck->failed;
  if (damage[0]) {
    fail(ck, s, damage);
  } else if (status) {
    snprintf(text, sizeof text, "the run failed: %s", moi_last_error());
    fail(ck, s, text);
  } else {
    /* a plan does not name the shared expert's rows: those of one format are the routed experts' */
    int named = c->op == MOI_OP_ATTENTION ||
                (ck->backend == MOI_BACKEND_VULKAN && (!c->has_shared || c->shared.format == c->experts.format));
    const char *name = named ? moi_plan_kernel(plan) : strcmp(kernel, CHOSEN) ? kernel : NULL;
    moi_verdict v = moi_case_compare(c, ck->backend, name, &out, expected);
    s->excused += v.excused;
    if (v.nmse > s->worst) s->worst = v.nmse;
    if (!v.ok) fail(ck, s, v.text);
  }
  moi_plan_destroy(plan);
  if (ck->failed == before && promises) check_promises(ck, c, kernel, s, &out);
  moi_arena_free(&arena);
}

/* Runs a case through the reference and all kernels. `selector` is the part of the command that names its list; `label`
 * is what the report says for `op`. */
static void check_case(check *ck, moi_case *c, const char *op, const char *label, const char *selector,
                       uint32_t index) {
  const char *names[MAX_KERNELS];
  uint32_t n = kernels_for(ck, c, names);
  if (!n) return;
  ck->n_cases++;
  moi_case_make(c, MOI_ARENA_GUARD);
  moi_arena arena = {.flags = MOI_ARENA_GUARD};
  moi_outputs expected = moi_case_outputs(c, &arena);
  moi_plan *plan = NULL;
  char damage[160] = "", text[600], device[32] = "";
  if (ck->device) snprintf(device, sizeof device, " --device %u", (unsigned)ck->device);
  snprintf(current, sizeof current, "moiety check --backend cpu --op %s%s --case %u --seed %llu", op, selector, index,
           (unsigned long long)ck->seed);
  moi_status status = MOI_OK;
  if (!moi_case_known(c, &expected)) {
    status = moi_case_plan(c, ck->reference, "ref", 0, &plan);
    if (!status) status = moi_case_run_guarded(c, plan, &expected, damage, sizeof damage);
  }
  moi_plan_destroy(plan);
  if (status) {
    snprintf(text, sizeof text, "the reference refuses: %s%s", moi_last_error(), damage);
    fail(ck, stat_of(ck, label, "ref"), text);
  } else {
    for (uint32_t i = 0; i < n; i++) {
      snprintf(current, sizeof current, "moiety check --backend %s%s --op %s --kernel %s%s --case %u --seed %llu",
               ck->backend_name, device, op, names[i], selector, index, (unsigned long long)ck->seed);
      if (ck->verbose) printf("%s\n", current), fflush(stdout);
      /* several more runs: for each kernel on every third case */
      check_kernel(ck, c, label, names[i], &expected, ck->only_given || (index + i) % 3 == 0);
    }
  }
  moi_arena_free(&arena);
  moi_case_free(c);
}

static int wanted(const check *ck, uint32_t index, uint32_t stride) {
  if (ck->only_given) return index == ck->only;
  return !ck->quick || index % stride == (index / stride) % stride;
}

static int asked(const check *ck, const char *op) { return !ck->op || moi_list_has(ck->op, op); }

static double seconds_since(struct timespec start) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)(now.tv_sec - start.tv_sec) + 1e-9 * (double)(now.tv_nsec - start.tv_nsec);
}

static void stage(const check *ck, const char *what) {
  fprintf(stderr, "%6.1f s  %s %s\n", seconds_since(ck->start), ck->backend_name, what);
}

static const char *attention_label(const moi_case *c) {
  return c->attention.task == MOI_RIG_APPEND ? "append" : c->attention.task == MOI_RIG_MERGE ? "merge" : "attention";
}

static void run_attention(check *ck, moi_case *c) {
  char selector[96];
  stage(ck, "attention");
  for (uint32_t i = 0; !ck->preset && moi_check_attention_case(i, ck->seed, c); i++)
    if (wanted(ck, i, 4)) check_case(ck, c, "attention", attention_label(c), "", i);
  if (ck->only_given && !ck->preset) return; /* the case is one of that list */
  uint32_t n = 0;
  for (uint32_t p = 0; moi_preset_at(p); p++) {
    const moi_preset *preset = moi_preset_at(p);
    if (ck->preset && preset != ck->preset) continue;
    snprintf(selector, sizeof selector, " --preset %s", preset->name);
    for (uint32_t i = 0; moi_check_attention_preset_case(preset, i, ck->seed, c); i++, n++)
      if (ck->only_given ? i == ck->only : !ck->quick || n % 6 == 0)
        check_case(ck, c, "attention", "attention", selector, i);
  }
}

static void run_all(check *ck) {
  moi_case *c = malloc(sizeof *c);
  char selector[96];
  if (!c) exit(3);
  if (asked(ck, "route") && !ck->preset && !ck->format) {
    stage(ck, "route");
    for (uint32_t i = 0; moi_check_route_case(i, ck->seed, c); i++)
      if (wanted(ck, i, 4)) check_case(ck, c, "route", "route", "", i);
  }
  static int (*const lists[2])(moi_format, uint32_t, uint64_t, moi_case *) = {moi_check_gemm_case,
                                                                              moi_check_experts_case};
  static const char *const names[2] = {"gemm", "experts"};
  for (int list = 0; list < 2; list++) {
    if (!asked(ck, names[list]) || ck->preset) continue;
    stage(ck, names[list]);
    for (uint32_t f = 0; moi_format_at(f); f++) {
      moi_format format = moi_format_at(f);
      if (ck->format && format != ck->format) continue;
      if (ck->backend != MOI_BACKEND_CPU && moi_format_find(format)->interleaved) continue; /* plans refuse it */
      snprintf(selector, sizeof selector, " --format %s", moi_format_name(format));
      for (uint32_t i = 0; lists[list](format, i, ck->seed, c); i++)
        if (ck->only_given ? i == ck->only : wanted(ck, i + f, 4))
          check_case(ck, c, names[list], names[list], selector, i);
    }
  }
  if (asked(ck, "moe")) {
    stage(ck, "moe");
    for (uint32_t p = 0; moi_preset_at(p); p++) {
      const moi_preset *preset = moi_preset_at(p);
      if (ck->preset && preset != ck->preset) continue;
      if (ck->format)
        snprintf(selector, sizeof selector, " --preset %s --format %s", preset->name, moi_format_name(ck->format));
      else snprintf(selector, sizeof selector, " --preset %s", preset->name);
      for (uint32_t i = 0; moi_check_moe_case(preset, ck->format, i, ck->seed, c); i++)
        if (ck->only_given ? i == ck->only : !ck->quick || i == p % 3) check_case(ck, c, "moe", "moe", selector, i);
    }
  }
  if (asked(ck, "attention") && !ck->format) run_attention(ck, c);
  free(c);
}

static moi_status open_contexts(check *ck) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  desc.backend = ck->backend;
  if (ck->backend != MOI_BACKEND_CPU) desc.device = (uint32_t)ck->device;
  moi_status status = moi_context_create(&desc, &ck->pool);
  if (status || ck->backend != MOI_BACKEND_CPU) {
    ck->serial = ck->pool; /* a device has no threads to wake, and its pipelines are made once for each context */
    return status;
  }
  desc.n_workers = 1;
  status = moi_context_create(&desc, &ck->serial);
  desc.n_workers = 3;
  desc.parallel_for = backwards;
  return status ? status : moi_context_create(&desc, &ck->other);
}

/* asked_for: by name; else a device that cannot be used is passed over, with a line. */
static int check_backend(check *ck, int asked_for) {
  ck->pool = ck->serial = ck->other = NULL;
  moi_status status = open_contexts(ck);
  if (status) fprintf(stderr, "moiety check: %s: %s\n", ck->backend_name, moi_last_error());
  else run_all(ck);
  moi_device_forget(ck->pool);
  moi_context_destroy(ck->other);
  if (ck->serial != ck->pool) moi_context_destroy(ck->serial);
  moi_context_destroy(ck->pool);
  return status && (asked_for || (status != MOI_UNSUPPORTED && status != MOI_NO_DEVICE));
}

static void report(const check *ck) {
  if (ck->only_given && ck->n_stats == 0) return;
  printf("%-48s %6s %7s %8s %11s\n", "backend op        kernel", "cases", "failed", "excused", "worst nmse");
  for (uint32_t i = 0; i < ck->n_stats; i++) {
    const stat *s = &ck->stats[i];
    if (s->cases || s->failed) printf("%-48s %6u %7u %8u %11.2g\n", s->name, s->cases, s->failed, s->excused, s->worst);
  }
  printf("%s: %u cases, %u runs of kernels, %u failures, seed %llu, %.1f s\n", ck->failed ? "FAILED" : "ok",
         ck->n_cases, ck->ran, ck->failed, (unsigned long long)ck->seed, seconds_since(ck->start));
}

/* A kernel name must be one that some list has, or the check would pass by doing nothing. */
static int find_kernel(const char *name) {
  const char *names[MAX_KERNELS];
  int n = 0;
  names[n++] = CHOSEN;
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
    moi_kernel_info info = MOI_KERNEL_INFO_INIT;
    for (uint32_t i = 0; !moi_kernel_get((moi_backend)b, i, &info) && n < MAX_KERNELS; i++) names[n++] = info.name;
  }
  for (int i = 0; i < n; i++)
    if (!strcmp(names[i], name)) return 0;
  const char *near = moi_nearest(name, names, n);
  return near ? moi_usage_error("check", "--kernel: no '%s'; did you mean %s?", name, near)
              : moi_usage_error("check", "--kernel: no '%s'", name);
}

static int check_ops(const char *ops) {
  char copy[128];
  snprintf(copy, sizeof copy, "%s", ops);
  for (char *word = strtok(copy, ","); word; word = strtok(NULL, ","))
    if (!moi_list_has("route,gemm,experts,moe,attention", word))
      return moi_usage_error("check", "--op: no '%s'; there are route, gemm, experts, moe, attention", word);
  return 0;
}

int moi_command_check(int argc, char **argv) {
  static const moi_command command = {"check", "every kernel that runs here against the reference",
                                      "Exit status 1 if anything fails. Every failure says the command that repeats "
                                      "it. MOI_DEBUG=cpu=avx2 and the like\n"
                                      "make this machine check the lesser kernels.\n",
                                      NULL};
  static check ck;
  const char *backend = "all", *format = NULL;
  memset(&ck, 0, sizeof ck);
  ck.seed = 1;
  moi_option options[] = {
      {"--backend", MOI_OPTION_TEXT, (void *)&backend, "NAME", "cpu, cuda, vulkan or all (default: all that are here)",
       0},
      {"--device", MOI_OPTION_UINT, &ck.device, "N",
       "which of moiety devices, of a backend that has several (default: 0)", 0},
      {"--op", MOI_OPTION_TEXT, (void *)&ck.op, "OP,...", "of route, gemm, experts, moe, attention (default: all)", 0},
      {"--kernel", MOI_OPTION_TEXT, (void *)&ck.kernel, "NAME", "one row of the kernel list; 'chosen': what plans take",
       0},
      {"--format", MOI_OPTION_TEXT, (void *)&format, "NAME", "one weight format", 0},
      {"--preset", MOI_OPTION_TEXT, (void *)&ck.preset_name, "NAME", "moe and attention of one preset", 0},
      {"--case", MOI_OPTION_UINT, &ck.only, "N", "case N of its list", 0},
      {"--seed", MOI_OPTION_UINT, &ck.seed, "S", "of the random data (default: 1)", 0},
      {"--quick", MOI_OPTION_FLAG, &ck.quick, NULL, "a quarter of the cases", 0},
      {"--verbose", MOI_OPTION_FLAG, &ck.verbose, NULL, "the command of every run", 0},
  };
  int n_positional, n_options = sizeof options / sizeof *options, refused = 0;
  int status = moi_options_parse(&command, options, n_options, argc, argv, &n_positional);
  if (status >= 0) return status;
  ck.only_given = options[6].given;
  if (format) refused = moi_find_format("check", format, &ck.format);
  if (!refused && ck.preset_name) refused = moi_find_preset("check", ck.preset_name, &ck.preset);
  if (!refused && ck.device > UINT32_MAX) refused = moi_usage_error("check", "--device: there are not so many");
  if (!refused && ck.kernel) refused = find_kernel(ck.kernel);
  if (!refused && ck.op) refused = check_ops(ck.op);
  moi_backend one = MOI_BACKEND_COUNT;
  if (!refused && strcmp(backend, "all")) refused = moi_find_backend("check", backend, &one);
  if (refused) return refused;
  clock_gettime(CLOCK_MONOTONIC, &ck.start);
#if !defined(_WIN32)
  signal(SIGSEGV, on_fault);
  signal(SIGBUS, on_fault);
#endif
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  if (moi_context_create(&desc, &ck.reference)) {
    fprintf(stderr, "moiety check: no reference: %s\n", moi_last_error());
    return 1;
  }
  int broken = 0;
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
    uint32_t count = 0;
    if (one != MOI_BACKEND_COUNT && b != (int)one) continue;
    ck.backend = (moi_backend)b;
    ck.backend_name = moi_backend_name(ck.backend);
    if (one == MOI_BACKEND_COUNT && (moi_device_count(ck.backend, &count) || !count)) continue;
    broken |= check_backend(&ck, one != MOI_BACKEND_COUNT);
  }
  moi_context_destroy(ck.reference);
  if (!broken) report(&ck);
  if (!broken && !ck.ran && !ck.failed) {
    fprintf(stderr, "moiety check: nothing to run: no kernel and case meet these options\n");
    return 1;
  }
  return broken || ck.failed ? 1 : 0;
}
