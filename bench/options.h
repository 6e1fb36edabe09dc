/* Strict command lines: every option is known, has its value, and is said once; else exit status 2 and a hint. */
#ifndef MOI_BENCH_OPTIONS_H
#define MOI_BENCH_OPTIONS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum moi_option_kind { MOI_OPTION_FLAG, MOI_OPTION_TEXT, MOI_OPTION_UINT, MOI_OPTION_REAL } moi_option_kind;

typedef struct moi_option {
  const char *name; /* "--preset" */
  moi_option_kind kind;
  void *value;          /* int, const char *, uint64_t, double */
  const char *argument; /* what --help calls the value */
  const char *help;
  int given;
} moi_option;

typedef struct moi_command {
  const char *name;
  const char *summary; /* one line */
  const char *text;    /* for --help, after the options; may be NULL */
  const char *positional; /* what --help calls them, NULL: none are taken */
} moi_command;

/* Parses argv (without the command's name). Positional arguments are moved to the front of argv and counted in
 * *n_positional. Returns -1 to go on, or the exit status: 0 after --help, 2 after an error. */
int moi_options_parse(const moi_command *command, moi_option *options, int n_options, int argc, char **argv,
                      int *n_positional);

/* "moiety COMMAND: message" and a pointer to --help on stderr; returns 2. */
int moi_usage_error(const char *command, const char *format, ...);

/* The entry of a list that is most like `word`, NULL if none is near. */
const char *moi_nearest(const char *word, const char *const *list, int n);

/* Whether `word` stands in the comma separated list. */
int moi_list_has(const char *list, const char *word);

#ifdef __cplusplus
}
#endif
#endif
