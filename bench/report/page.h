/* Writing HTML: text that grows, and numbers in words. */
#ifndef MOI_BENCH_REPORT_PAGE_H
#define MOI_BENCH_REPORT_PAGE_H

#include <stddef.h>

typedef struct moi_page {
  char *text; /* ends with 0 */
  size_t size, capacity;
  int failed; /* out of memory: what follows is dropped */
} moi_page;

/* A small printf: %s text, escaped for HTML and attributes; %r text as it is, for what does not come from a file;
 * %d int; %f a coordinate or percentage, one decimal; %%. */
void moi_page_put(moi_page *page, const char *format, ...);
void moi_page_free(moi_page *page);

/* A short text by value. */
typedef struct moi_words {
  char s[96];
} moi_words;

/* Three significant digits and a unit; a dash where the value is not known (NaN) or makes no sense. */
moi_words moi_words_time(double seconds);
moi_words moi_words_number(double value);                 /* 0.012, 1.23, 12.3, 123, 1230, 1.2e+09 */
moi_words moi_words_short(double value);                  /* 12.5, 1.2k, 20k, 1M */
moi_words moi_words_unit(double value, const char *unit); /* the number, a space that does not break, the unit */
moi_words moi_words_giga(double value, const char *unit); /* "GFLOP/s", or from 10000 on "TFLOP/s" */
moi_words moi_words_percent(double fraction);
moi_words moi_words_tokens(double tokens); /* "1 token", "512 tokens" */
moi_words moi_words_count(double value);   /* a whole number, all digits */

#endif
