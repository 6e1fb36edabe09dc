/* moiety: devices, presets, check, bench, compare, tables, report. */
#include <stdio.h>
#include <string.h>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

#include "bench/commands.h"
#include "bench/options.h"

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *summary;
} commands[] = {
    {"devices", moi_command_devices, "the backends and devices of this machine, and what is missing"},
    {"presets", moi_command_presets, "the models whose MoE and attention layers are built in"},
    {"check", moi_command_check, "every kernel that runs here against the reference"},
    {"bench", moi_command_bench, "time, GB/s and the fraction of this device's measured peak"},
    {"compare", moi_command_compare, "two JSON results of bench, row by row"},
    {"tables", moi_command_tables, "the support and speed tables in Markdown"},
    {"report", moi_command_report, "JSON results of bench as one HTML page"},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void help(FILE *out) {
  fprintf(out, "moiety: Mixture-of-Experts kernels, checked and measured\n\nusage: moiety COMMAND [options]\n\n");
  for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
  fprintf(out, "\n  --version  the library's version\n  --help     this; moiety COMMAND --help says more\n");
}

int main(int argc, char **argv) {
#if defined(_WIN32) /* the same bytes as elsewhere, for what reads them */
  _setmode(_fileno(stdout), _O_BINARY);
#endif
  if (argc < 2) {
    help(stderr);
    return 2;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    help(stdout);
    return 0;
  }
  if (!strcmp(argv[1], "--version")) {
    uint32_t v = moi_version();
    printf("moiety %u.%u.%u\n", v >> 16, (v >> 8) & 255, v & 255);
    return 0;
  }
  const char *names[N_COMMANDS];
  for (int i = 0; i < N_COMMANDS; i++) {
    names[i] = commands[i].name;
    if (!strcmp(argv[1], names[i])) return commands[i].run(argc - 2, argv + 2);
  }
  const char *near = moi_nearest(argv[1], names, N_COMMANDS);
  return near ? moi_usage_error("", "no command '%s'; did you mean %s?", argv[1], near)
              : moi_usage_error("", "no command '%s'", argv[1]);
}
