#include "bench/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int moi_usage_error(const char *command, const char *format, ...) {
  va_list list;
  fprintf(stderr, "moiety%s%s: ", *command ? " " : "", command);
  va_start(list, format);
  vfprintf(stderr, format, list);
  va_end(list);
  fprintf(stderr, "\nmoiety%s%s --help lists what there is\n", *command ? " " : "", command);
  return 2;
}

/* Levenshtein distance of short words. */
static int distance(const char *a, const char *b) {
  int row[64], n = (int)strlen(b);
  if (n > 62 || strlen(a) > 62) return 64;
  for (int j = 0; j <= n; j++) row[j] = j;
  for (int i = 1; *a; a++, i++) {
    int diagonal = row[0];
    row[0] = i;
    for (int j = 1; j <= n; j++) {
      int above = row[j], best = diagonal + (*a != b[j - 1]);
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      diagonal = above;
      row[j] = best;
    }
  }
  return row[n];
}

const char *moi_nearest(const char *word, const char *const *list, int n) {
  const char *best = NULL;
  int least = (int)strlen(word) / 2 + 1;
  for (int i = 0; i < n; i++) {
    int d = distance(word, list[i]);
    if (strstr(list[i], word) && strlen(word) > 2) d = 1;
    if (d < least) {
      least = d;
      best = list[i];
    }
  }
  return best;
}

int moi_list_has(const char *list, const char *word) {
  size_t n = strlen(word);
  for (const char *p = list; p;) {
    const char *comma = strchr(p, ',');
    size_t length = comma ? (size_t)(comma - p) : strlen(p);
    if (length == n && !strncmp(p, word, n)) return 1;
    p = comma ? comma + 1 : NULL;
  }
  return 0;
}

static void help(const moi_command *command, const moi_option *options, int n) {
  printf("moiety %s: %s\n\nusage: moiety %s%s%s%s\n", command->name, command->summary, command->name,
         n ? " [options]" : "", command->positional ? " " : "", command->positional ? command->positional : "");
  if (n) printf("\n");
  for (int i = 0; i < n; i++) {
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", options[i].name, options[i].argument ? " " : "",
             options[i].argument ? options[i].argument : "");
    printf("  %-26s %s\n", left, options[i].help);
  }
  if (command->text) printf("\n%s", command->text);
}

static int set(const moi_command *command, moi_option *option, const char *text) {
  char *end = NULL;
  errno = 0;
  if (option->given)
    return moi_usage_error(command->name, "%s is given twice", option->name);
  option->given = 1;
  switch (option->kind) {
    case MOI_OPTION_FLAG: *(int *)option->value = 1; return -1;
    case MOI_OPTION_TEXT:
      if (!*text) return moi_usage_error(command->name, "%s needs a value", option->name);
      *(const char **)option->value = text;
      return -1;
    case MOI_OPTION_UINT:
      *(uint64_t *)option->value = strtoull(text, &end, 0);
      if (!*text || *end || errno || *text == '-')
        return moi_usage_error(command->name, "%s: '%s' is no number >= 0", option->name, text);
      return -1;
    case MOI_OPTION_REAL:
      *(double *)option->value = strtod(text, &end);
      if (!*text || *end || errno || !(*(double *)option->value >= 0))
        return moi_usage_error(command->name, "%s: '%s' is no number >= 0", option->name, text);
      return -1;
  }
  return -1;
}

int moi_options_parse(const moi_command *command, moi_option *options, int n_options, int argc, char **argv,
                      int *n_positional) {
  int count = 0;
  for (int i = 0; i < argc; i++)
    if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
      help(command, options, n_options);
      return 0;
    }
  for (int i = 0; i < argc; i++) {
    const char *arg = argv[i];
    if (arg[0] != '-' || !arg[1]) {
      if (!command->positional) return moi_usage_error(command->name, "'%s': no such argument", arg);
      argv[count++] = argv[i];
      continue;
    }
    size_t length = strcspn(arg, "=");
    moi_option *option = NULL;
    for (int j = 0; j < n_options && !option; j++)
      if (strlen(options[j].name) == length && !strncmp(options[j].name, arg, length)) option = &options[j];
    if (!option) {
      char word[64];
      const char *names[64];
      snprintf(word, sizeof word, "%.*s", (int)length, arg);
      for (int j = 0; j < n_options && j < 64; j++) names[j] = options[j].name;
      const char *near = moi_nearest(word, names, n_options < 64 ? n_options : 64);
      return near ? moi_usage_error(command->name, "no option %s; did you mean %s?", word, near)
                  : moi_usage_error(command->name, "no option %s", word);
    }
    const char *text = arg[length] == '=' ? arg + length + 1 : NULL;
    if (option->kind == MOI_OPTION_FLAG && text)
      return moi_usage_error(command->name, "%s takes no value", option->name);
    if (option->kind != MOI_OPTION_FLAG && !text) {
      if (++i >= argc) return moi_usage_error(command->name, "%s needs a value: %s", option->name, option->argument);
      text = argv[i];
    }
    int status = set(command, option, text);
    if (status >= 0) return status;
  }
  *n_positional = count;
  return -1;
}
