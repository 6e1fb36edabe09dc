/* The subcommands of the moiety program, each with argv behind its name. They return the exit status: 0, 1 for findings
 * or failures of what was asked, 2 for a wrong command line. */
#ifndef MOI_BENCH_COMMANDS_H
#define MOI_BENCH_COMMANDS_H

#include <moiety.h>

#ifdef __cplusplus
extern "C" {
#endif

int moi_command_devices(int argc, char **argv);
int moi_command_presets(int argc, char **argv);
int moi_command_check(int argc, char **argv);
int moi_command_bench(int argc, char **argv);
int moi_command_compare(int argc, char **argv);
int moi_command_tables(int argc, char **argv);
int moi_command_report(int argc, char **argv);

/* Lookups of names that options give: 0, or 2 after a message with the nearest name. */
int moi_find_preset(const char *command, const char *name, const moi_preset **out);
int moi_find_format(const char *command, const char *name, moi_format *out);
int moi_find_backend(const char *command, const char *name, moi_backend *out);

/* Multiplications and additions of one token in a layer, and weight bytes that it reads (active experts, shared experts
 * and router), for presets. */
double moi_preset_flops(const moi_preset *preset);
double moi_preset_bytes(const moi_preset *preset);

#ifdef __cplusplus
}
#endif
#endif
