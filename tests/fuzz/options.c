/* Command lines: words separated by zero bytes. */
#include "bench/options.h"
#include "tests/fuzz/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { MOST = 16 };
  char *text = malloc(size + 1), *argv[MOST + 1];
  if (!text) abort();
  memcpy(text, data, size);
  text[size] = 0;
  int argc = 0, flag = 0, n = 0;
  for (size_t at = 0; at <= size && argc < MOST; at += strlen(text + at) + 1) argv[argc++] = text + at;
  argv[argc] = NULL;
  const char *word = NULL;
  uint64_t number = 0;
  double real_number = 0;
  moi_option options[] = {{"--flag", MOI_OPTION_FLAG, &flag, NULL, "", 0},
                          {"--text", MOI_OPTION_TEXT, (void *)&word, "TEXT", "", 0},
                          {"--number", MOI_OPTION_UINT, &number, "N", "", 0},
                          {"--real", MOI_OPTION_REAL, &real_number, "X", "", 0}};
  const moi_command command = {"fuzz", "a command", NULL, size & 1 ? "FILE" : NULL};
  int status = moi_options_parse(&command, options, 4, argc, argv, &n);
  if (status != -1 && status != 0 && status != 2) abort();
  if (status == -1 && n > argc) abort();
  if (status == -1 && word) moi_list_has(word, "cpu");
  free(text);
  return 0;
}
