/* moiety report: pages are well formed and say what the files say; whatever a file holds, it is escaped or refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/report/report.h"
#include "bench/rig/random.h"

#define CONTEXT                                                                                                        \
  "\"date\": \"2026-01-02T03:04:05+00:00\", \"host_name\": \"h\", \"num_cpus\": 4, \"moiety_version\": \"0.1.0\", "    \
  "\"git_commit\": \"abc\", \"command\": \"moiety bench\", \"isa\": \"avx2\", \"threads\": \"4\", \"peak_read_gbs\": " \
  "\"20.00\", "                                                                                                        \
  "\"peak_f32_gflops\": \"100.0\", \"peak_int8_gops\": \"0.0\", \"layers\": \"l\""
#define FILE_OF(context, rows) "{\"context\": {" context "}, \"benchmarks\": [" rows "]}"
#define ROW_OF(name, time, more)                                                                                       \
  "{\"name\": \"" name "\", \"run_name\": \"" name "\", \"run_type\": \"iteration\", \"real_time\": " time             \
  ", \"time_unit\": \"us\", \"bytes_per_second\": 1e10, \"flops_per_second\": 2e10, \"bandwidth_fraction\": 0.5, "     \
  "\"compute_fraction\": 0.2, \"label\": \"of f32 FMA\"" more "}"
#define NAME(tokens) "moe/cpu/k-avx2/q4_k/qwen/tokens:" tokens
#define DEVICE(name) "\"device\": \"" name "\", " CONTEXT

static moi_report report;
static moi_page page;
static char error[1024];

/* ---- a reader of pages */

static int is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* Whether & at p begins a reference that every parser knows. */
static int is_reference(const char *p) {
  static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;"};
  for (int i = 0; i < 4; i++)
    if (!strncmp(p, known[i], strlen(known[i]))) return 1;
  if (strncmp(p, "&#", 2)) return 0;
  size_t digits = strspn(p + 2, "0123456789");
  return digits && p[2 + digits] == ';';
}

static void bad_page(const char *at, const char *what) {
  int line = 1;
  for (const char *p = page.text; p < at; p++) line += *p == '\n';
  fail_msg("line %d: %s: %.60s", line, what, at);
}

/* The value of the attribute at p, and what follows it. */
static const char *read_attribute(const char *p) {
  const char *start = p;
  while (is_name(*p)) p++;
  if (p == start || p[0] != '=' || p[1] != '"') bad_page(start, "an attribute is name=\"value\"");
  size_t n = (size_t)(p - start);
  const char *value = p + 2;
  for (p = value; *p && *p != '"'; p++) {
    if (*p == '<' || *p == '>') bad_page(p, "in an attribute");
    if (*p == '&' && !is_reference(p)) bad_page(p, "no reference");
  }
  if (!*p) bad_page(value, "an attribute without an end");
  if (n >= 2 && !strncmp(start, "on", 2)) bad_page(start, "a handler");
  if (n == 3 && !strncmp(start, "src", 3)) bad_page(start, "something from outside");
  if (n == 4 && !strncmp(start, "href", 4)) {
    char id[64];
    if (*value != '#') bad_page(start, "a link outside the page");
    snprintf(id, sizeof id, " id=\"%.*s\"", (int)(p - value - 1), value + 1);
    if (!strstr(page.text, id)) bad_page(start, "a link to nothing");
  }
  return p + 1;
}

/* Elements nest and end, attributes are quoted, text is escaped: XML's rules, which HTML understands too. */
static void check_page(void) {
  enum { DEEP = 64 };
  struct {
    const char *name;
    size_t n;
  } stack[DEEP];
  int depth = 0, scripts = 0;
  const char *p = page.text, *doctype = "<!DOCTYPE html>\n";
  assert_int_equal(strlen(page.text), page.size);
  assert_memory_equal(p, doctype, strlen(doctype));
  p += strlen(doctype);
  while (*p) {
    if (*p == '&' && !is_reference(p)) bad_page(p, "no reference");
    if (*p == '>') bad_page(p, "not escaped");
    if (*p != '<') {
      p++;
      continue;
    }
    const char *tag = p++;
    int closing = *p == '/';
    p += closing;
    const char *name = p;
    while (is_name(*p)) p++;
    size_t n = (size_t)(p - name);
    if (!n) bad_page(tag, "not escaped");
    if (closing) {
      if (!depth || stack[depth - 1].n != n || strncmp(stack[depth - 1].name, name, n)) bad_page(tag, "closes another");
      if (*p++ != '>') bad_page(tag, "no end");
      depth--;
      continue;
    }
    while (*p == ' ') p = read_attribute(p + 1);
    int empty = *p == '/';
    p += empty;
    if (*p++ != '>') bad_page(tag, "no end");
    if (empty) continue;
    if (depth == DEEP) bad_page(tag, "too deep");
    stack[depth].name = name;
    stack[depth++].n = n;
    int script = n == 6 && !strncmp(name, "script", 6);
    scripts += script;
    if (script || (n == 5 && !strncmp(name, "style", 5))) {
      p = strstr(p, script ? "</script>" : "</style>");
      if (!p) bad_page(tag, "no end");
    }
  }
  assert_int_equal(depth, 0);
  assert_int_equal(scripts, 1);
  /* what could ask the network, in the style sheet and the script too */
  static const char *const outside[] = {"@import", "url(",    "fetch(", "XMLHttpRequest", "WebSocket",
                                        "<link",   "<iframe", "<img",   "sendBeacon",     "import("};
  for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) assert_null(strstr(page.text, outside[i]));
  assert_null(strstr(page.text, "nan\""));
  assert_null(strstr(page.text, "NaN\""));
  assert_null(strstr(page.text, "inf\""));
}

/* ---- files */

static const char *path_of(int i) {
  static char paths[8][32];
  snprintf(paths[i], sizeof paths[i], "report_test_%d.json", i);
  return paths[i];
}

static void write_bytes(int i, const char *text, size_t size) {
  remove(path_of(i)); /* as in checkpoint.h */
  FILE *file = fopen(path_of(i), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(text, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

/* Makes a page of the first n files: 0, or 1 and error. */
static int make(int n) {
  char *paths[8];
  for (int i = 0; i < n; i++) paths[i] = (char *)path_of(i);
  moi_page_free(&page);
  error[0] = 0;
  int status = moi_report_read(n, paths, &report, error, sizeof error);
  if (!status) {
    assert_int_equal(moi_report_write(&report, &page), 0);
    check_page();
  }
  moi_report_free(&report);
  return status;
}

static void make_of(const char *text) {
  write_bytes(0, text, strlen(text));
  if (make(1)) fail_msg("refused: %s", error);
}

static void has(const char *text) {
  if (!strstr(page.text, text)) fail_msg("the page lacks: %s", text);
}

static void lacks(const char *text) {
  if (strstr(page.text, text)) fail_msg("the page has: %s", text);
}

static int count_of(const char *text) {
  int n = 0;
  for (const char *p = page.text; (p = strstr(p, text)); p++) n++;
  return n;
}

static int clean(void **state) {
  (void)state;
  for (int i = 0; i < 8; i++) remove(path_of(i));
  moi_page_free(&page);
  return 0;
}

/* ---- what a page says */

static void test_row(void **state) {
  (void)state;
  make_of(FILE_OF(DEVICE("Box(R) 9"), ROW_OF(NAME("1"), "1234.5", "") "," ROW_OF(NAME("64"), "20000", "")));
  has("Mixture-of-Experts on Box 9");
  has("<dd>Box(R) 9, 4 cores</dd>");
  has("<dd>4 threads, avx2</dd>");
  has("20.0\xc2\xa0GB/s in order");
  has("100\xc2\xa0GFLOP/s fp32 multiply-adds</dd>");
  lacks("int8 (VNNI)"); /* a peak of 0 is one that is not there */
  has("<strong>1.23\xc2\xa0ms</strong> for 1\xc2\xa0token</p>");
  has("<strong>20.0\xc2\xa0ms</strong> for 64\xc2\xa0tokens, 312\xc2\xa0\xc2\xb5s each</p>");
  has("50\xc2\xa0% of memory bandwidth");
  has("2026-01-02 03:04 UTC");
  has("<strong>2 of 2 timed rows carry no error figure in their file.</strong>");
  has("memory 20.0\xc2\xa0GB/s</text>");
  has("fp32 FMA 100\xc2\xa0GFLOP/s</text>");
  lacks("id=\"compare\"");
  assert_int_equal(count_of("<td class=\"none\">not recorded</td></tr>"), 2);
  assert_int_equal(count_of("<path class=\"line c0 d0\" d=\"M1 6H25\"/>"), 1); /* one series in the legend */
}

static void test_repetitions(void **state) {
  (void)state;
  static const char rows[] = FILE_OF(DEVICE("Box"),
      ROW_OF(NAME("1"), "100", ", \"repetition_index\": 0") ","
      ROW_OF(NAME("1"), "150", ", \"repetition_index\": 1") ","
      ROW_OF(NAME("1"), "120", ", \"aggregate_name\": \"median\"") ","
      ROW_OF(NAME("1"), "0.2", ", \"aggregate_name\": \"cv\""));
  make_of(rows);
  has("<strong>120\xc2\xa0\xc2\xb5s</strong>");
  has(">42\xc2\xa0%</td>"); /* 50 / 120 */
  has("1 row of <code>moiety bench</code>");
}

static void test_shapes(void **state) {
  (void)state;
#define ATTENTION(tokens, time, kv)                                                                                    \
  ROW_OF("attention/cpu/flash/f16/qwen/tokens:" tokens, time,                                                          \
         ", \"family_index\": " kv ", \"kv_len\": " kv ", \"energy_joules\": 3")
  static const char rows[] = FILE_OF(DEVICE("Box"),
      ATTENTION("1", "10", "1024") "," ATTENTION("8", "40", "1024") ","
      ATTENTION("1", "90", "4096") "," ATTENTION("8", "300", "4096") ","
      ROW_OF("novel/cpu/k/q/m/tokens:4/heads:32/real_time", "7", ", \"nested\": {\"a\": [1]}, \"text\": \"x\""));
  make_of(rows);
  has("qwen, attention, kv_len 1024");
  has("qwen, attention, kv_len 4096");
  has("m <span class=\"op\">novel, heads 32</span>");
  has("energy_joules 3</td>"); /* a measurement, not a shape */
  lacks("real_time</span>");
  assert_int_equal(count_of("f16, kv_len "), 2); /* two series */
}

static void test_attention(void **state) { /* as bench names it: prompts over themselves, decodes over a cache */
  (void)state;
#define PROMPT(n, time) ROW_OF("attention/cpu/flash/f16/qwen/tokens:" n "/kind:full/sequences:1/kv_len:" n, time, "")
#define DECODE(n, time)                                                                                                \
  ROW_OF("attention/cpu/flash/f16/qwen/tokens:" n "/kind:full/sequences:" n "/kv_len:4096", time, "")
  static const char rows[] = FILE_OF(DEVICE("Box"),
      PROMPT("64", "10") "," PROMPT("512", "90") "," DECODE("1", "50") "," DECODE("8", "400"));
  make_of(rows);
  has("f16, kind full, sequences 1, kv_len = tokens <");
  has("f16, kind full, sequences = tokens, kv_len 4096 <");
  has("<td class=\"shape\">kind full, sequences 1, kv_len 512</td>");
  has("qwen, attention, kind full, sequences 8, kv_len 4096\n");
}

static void test_check(void **state) {
  (void)state;
  static const char rows[] = FILE_OF(DEVICE("Box"),
      ROW_OF(NAME("1"), "10", ", \"error\": 1e-7, \"tolerance\": 4e-7") ","
      ROW_OF(NAME("8"), "40", ", \"error\": 8e-7, \"tolerance\": 4e-7") ","
      ROW_OF(NAME("16"), "50", ", \"nmse\": 3e-9") ","
      ROW_OF(NAME("32"), "60", ", \"error\": 0, \"tolerance\": 0") ","
      ROW_OF(NAME("64"), "90", ""));
  make_of(rows);
  has("must be equal, and is</td>");
  has("3.0e-09, no tolerance</td>");
  has("1 of 5 timed rows carry no error figure");
  has("25\xc2\xa0%</td>");
  has("<strong>beyond</strong>");
  has("beyond: 8.0e-07 of 4.0e-07");
  assert_int_equal(count_of("<strong>beyond</strong>"), 1);
}

static void test_failures(void **state) {
  (void)state;
  make_of(FILE_OF(DEVICE("Box"),
                  ROW_OF(NAME("1"), "10", ", \"error_occurred\": true, \"error_message\": \"wrong <result>\"")));
  has("1 row failed and has no time:");
  has("wrong &lt;result&gt;");
  has("No row has a time.");
  lacks("timed rows carry no error figure");
}

static void test_nan(void **state) { /* Google Benchmark writes them so */
  (void)state;
  make_of(FILE_OF(DEVICE("a NaN box"),
                  ROW_OF(NAME("1"), "10", ", \"error\": NaN, \"cv\": -NaN, \"x\": Infinity, \"y\": -Infinity")));
  has("Mixture-of-Experts on a NaN box"); /* in quotes it is a word */
}

static void test_machines(void **state) {
  (void)state;
  static const char a[] = FILE_OF(DEVICE("One"), ROW_OF(NAME("1"), "100", "") "," ROW_OF(NAME("8"), "500", ""));
  static const char b[] = FILE_OF(DEVICE("Two"), ROW_OF("moe/cuda/mma/q4_k/qwen/tokens:1", "40", ""));
  static const char other[] = FILE_OF(DEVICE("One"), ROW_OF(NAME("64"), "900", ""));
  write_bytes(0, a, sizeof a - 1);
  write_bytes(1, b, sizeof b - 1);
  assert_int_equal(make(2), 0);
  has("Mixture-of-Experts on 2 machines");
  has("<td class=\"number faster\">2.50</td>");
  has("id=\"compare\"");
  write_bytes(1, other, sizeof other - 1); /* other rows of the same machine belong to it */
  assert_int_equal(make(2), 0);
  has("Mixture-of-Experts on One");
  lacks("id=\"compare\"");
  write_bytes(1, a, sizeof a - 1); /* the same rows are another run */
  assert_int_equal(make(2), 0);
  has("One, run 2");
  has("<td class=\"number\">1.00</td>");
}

static void test_committed(void **state) {
  (void)state;
  static const char *const names[] = {"deepseek-v3", "gpt-oss-20b", "qwen3-30b-a3b-formats", "qwen3-30b-a3b"};
  char paths[4][1024], *list[4];
  for (int i = 0; i < 4; i++) {
    snprintf(paths[i], sizeof paths[i], "%s/%s.json", MOI_RESULTS_DIR, names[i]);
    list[i] = paths[i];
  }
  char *first = NULL;
  for (int again = 0; again < 2; again++) {
    moi_page_free(&page);
    if (moi_report_read(4, list, &report, error, sizeof error)) fail_msg("%s", error);
    assert_int_equal(moi_report_write(&report, &page), 0);
    check_page();
    const char *all = strstr(page.text, "<table id=\"all\"");
    int rows = 0;
    for (const char *p = all; (p = strstr(p, "<tr><td>")); p++) rows++;
    assert_int_equal(rows, report.n_rows);
    assert_int_equal(report.n_machines, 1);
    moi_report_free(&report);
    lacks("://");
    if (again) assert_string_equal(page.text, first);
    else {
      first = malloc(page.size + 1);
      assert_non_null(first);
      memcpy(first, page.text, page.size + 1);
    }
  }
  free(first);
}

/* ---- what a page must not do */

static void test_escape(void **state) {
  (void)state;
#define EVIL "</td></title></script><script>alert(1)</script><img src=x onerror=alert(1)>' onload='x"
#define EVIL_NAME "m<script>alert(1)<b>'&\\\"x\\u202e\\u0007\xff\xc0\xaf\xed\xa0\x80"
#define EVIL_PATH(tokens) EVIL_NAME "/" EVIL_NAME "/" EVIL_NAME "/" EVIL_NAME "/" EVIL_NAME "/tokens:" tokens
#define EVIL_ROW(tokens, more)                                                                                         \
  ROW_OF(EVIL_PATH(tokens) "/" EVIL_NAME ":" EVIL_NAME, "10", ", \"" EVIL "\": 5, \"" EVIL "2\": 5.5" more)
#define EVIL_MEMBER(name) "\"" name "\": \"" EVIL "\", "
#define EVIL_CONTEXT                                                                                                   \
  EVIL_MEMBER("device")                                                                                                \
  EVIL_MEMBER(EVIL)                                                                                                    \
  EVIL_MEMBER("moiety_version")                                                                                        \
  EVIL_MEMBER("git_commit")                                                                                            \
  EVIL_MEMBER("command")                                                                                               \
  EVIL_MEMBER("date")                                                                                                  \
  EVIL_MEMBER("isa")                                                                                                   \
  EVIL_MEMBER("layers")                                                                                                \
  "\"caches\": [{" EVIL_MEMBER("type") "\"level\": 1, \"size\": 1e300}, 7], \"load_avg\": 7, "  \
  "\"peak_<b>_gbs\": 5"
  make_of(FILE_OF(EVIL_CONTEXT, EVIL_ROW("1", ", \"label\": \"" EVIL "\"") "," EVIL_ROW("2", "")));
  lacks("<script>alert");
  lacks("<img");
  lacks("\xe2\x80\xae");
  lacks("\x07");
  lacks("\xff");
  has("m&lt;script&gt;alert(1)&lt;b&gt;&#39;&amp;&quot;x\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
}

static void refused(const char *text, const char *why) {
  write_bytes(0, text, strlen(text));
  if (!make(1)) fail_msg("not refused: %.200s", text);
  if (strncmp(error, path_of(0), strlen(path_of(0)))) fail_msg("names no file: %s", error);
  if (!strstr(error, why)) fail_msg("says \"%s\", not \"%s\"", error, why);
}

static void test_refusals(void **state) {
  (void)state;
#define GOOD ROW_OF(NAME("1"), "10", "")
  refused("", "is empty");
  refused("no json", "line 1: not JSON");
  refused("{\"context\": {},\n\"benchmarks\": [}", "line 2: not JSON");
  refused(FILE_OF(DEVICE("Box"), GOOD) " x", "not JSON");
  refused("[]", "has no \"context\"");
  refused("7", "has no \"context\"");
  refused("{}", "has no \"context\"");
  refused("{\"context\": [], \"benchmarks\": []}", "has no \"context\"");
  refused("{\"context\": {\"date\": \"x\"}, \"benchmarks\": [" GOOD "]}", "moiety_version");
  refused("{\"context\": {\"moiety_version\": 1}, \"benchmarks\": [" GOOD "]}", "moiety_version");
  refused("{\"context\": {" DEVICE("x") "}}", "has no list \"benchmarks\"");
  refused("{\"context\": {" DEVICE("x") "}, \"benchmarks\": {}}", "has no list \"benchmarks\"");
  refused("{\"context\": {\"device\": 7, " CONTEXT "}, \"benchmarks\": [" GOOD "]}", "\"device\" is no text");
  refused(FILE_OF(DEVICE("x"), ""), "empty list");
  refused(FILE_OF(DEVICE("x"), "7"), "benchmarks[0] is no object");
  refused(FILE_OF(DEVICE("x"), GOOD ", {}"), "benchmarks[1] has no \"run_name\"");
  refused(FILE_OF(DEVICE("x"), "{\"run_name\": 7}"), "has no \"run_name\"");
  refused(FILE_OF(DEVICE("x"), ROW_OF("BM_memcpy/8", "10", "")), "no row of moiety");
  refused(FILE_OF(DEVICE("x"), ROW_OF("a/b//d/e/tokens:1", "10", "")), "no row of moiety");
  refused(FILE_OF(DEVICE("x"), ROW_OF("a/b/c/d/e/tokens:1.5", "10", "")), "tokens are no whole number");
  refused(FILE_OF(DEVICE("x"), ROW_OF("a/b/c/d/e/tokens:nan", "10", "")), "tokens are no whole number");
  refused(FILE_OF(DEVICE("x"), ROW_OF("a/b/c/d/e/tokens:-1", "10", "")), "tokens are no whole number");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "NaN", "")), "\"real_time\" is no time");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "-1", "")), "\"real_time\" is no time");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "0", "")), "\"real_time\" is no time");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "1e999", "")), "\"real_time\" is no time");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "\"10\"", "")), "\"real_time\" is no time");
  refused(FILE_OF(DEVICE("x"), "{\"run_name\": \"" NAME("1") "\", \"real_time\": 1}"), "time_unit");
  refused(FILE_OF(DEVICE("x"), "{\"run_name\": \"" NAME("1") "\", \"real_time\": 1, \"time_unit\": \"us\", "
                                                             "\"bytes_per_second\": \"many\"}"),
          "\"bytes_per_second\" is no number");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "10", ", \"error\": -1")), "\"error\" is no measurement");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "10", ", \"tolerance\": 1e300")), "\"tolerance\" is no measurement");
  refused(FILE_OF(DEVICE("x"), ROW_OF(NAME("1"), "10", ", \"aggregate_name\": \"mean\"")), "without a median");
  write_bytes(0, FILE_OF(DEVICE("x"), GOOD), sizeof FILE_OF(DEVICE("x"), GOOD) - 1);
  char *same[2] = {(char *)path_of(0), (char *)path_of(0)};
  assert_int_equal(moi_report_read(2, same, &report, error, sizeof error), 1);
  moi_report_free(&report);
  assert_non_null(strstr(error, "is given twice"));
  char *none[1] = {(char *)"report_test_none.json"};
  assert_int_equal(moi_report_read(1, none, &report, error, sizeof error), 1);
  moi_report_free(&report);
  assert_non_null(strstr(error, "report_test_none.json: "));
}

/* head, then n times the row, with 0, 1, ... in the places of its #, then tail */
static char *repeat(const char *head, const char *row, int n, const char *tail) {
  size_t size = strlen(head) + strlen(tail) + (size_t)n * (strlen(row) + 24) + 1, at = 0;
  char *text = malloc(size);
  assert_non_null(text);
  at += (size_t)snprintf(text, size, "%s", head);
  for (int i = 0; i < n; i++) {
    for (const char *p = row; *p; p++) {
      if (*p == '#') at += (size_t)snprintf(text + at, size - at, "%d", i);
      else text[at++] = *p;
    }
  }
  snprintf(text + at, size - at, "%s", tail);
  return text;
}

static void test_sizes(void **state) {
  (void)state;
  static const char head[] = "{\"context\": {" DEVICE("x") "}, \"benchmarks\": [";
  static const char row[] = "{\"run_name\": \"a/b/c/d#/e/tokens:1\", \"real_time\": 1, \"time_unit\": \"us\"}, ";
  char *text = repeat(head, row, 25000, GOOD "]}");
  refused(text, "more than 20000 rows");
  free(text);
  text = repeat(head, "{}, ", 500000, "{}]}");
  refused(text, "entries");
  free(text);
  text = repeat("", "[", 200000, "");
  refused(text, "not JSON");
  free(text);
  text = repeat("{\"context\": {" DEVICE("x") "}, \"benchmarks\": [{\"run_name\": \"a/b/c/d/e", "/f#:1", 500,
                "\", \"real_time\": 1, \"time_unit\": \"us\"}]}");
  refused(text, "name is too long");
  free(text);
  text = repeat(head, row, 3000, GOOD "]}"); /* more formats than have a colour of their own */
  make_of(text);
  free(text);
  text = repeat(head,
                "{\"run_name\": \"a/b/c#/d/e/tokens:1\", \"real_time\": 1, \"time_unit\": \"us\"}, {\"run_name\": "
                "\"a/b/c#/d/e/tokens:9\", \"real_time\": 1, \"time_unit\": \"us\"}, ",
                100, GOOD "]}");
  make_of(text);
  has("No plot has more than 24 lines");
  free(text);
}

static void test_extremes(void **state) { /* axes of any length */
  (void)state;
  static const char *const times[] = {"1e-5", "1e-3", "1", "1e6", "1e14"};
  static const char *const rates[] = {"0", "1e-23", "1", "1e23"};
  for (int i = 0; i < 5; i++)
    for (int j = 0; j < 5; j++)
      for (int k = 0; k < 16; k += 3) {
        char text[2048];
        snprintf(text, sizeof text,
                 "{\"context\": {%s, \"peak_z_gflops\": %s}, \"benchmarks\": [{\"run_name\": \"a/b/c/d/e/tokens:1\", "
                 "\"real_time\": "
                 "%s, \"time_unit\": \"us\", \"bytes_per_second\": %s, \"flops_per_second\": 1e23, "
                 "\"compute_fraction\": %s}, "
                 "{\"run_name\": \"a/b/c/d/e/tokens:900000000000\", \"real_time\": %s, \"time_unit\": \"us\", "
                 "\"bytes_per_second\": 1e-23, \"flops_per_second\": %s}]}",
                 DEVICE("x"), k % 2 ? "1e11" : "1e-5", times[i], rates[k / 4], rates[k % 4], times[j], rates[k % 4]);
        make_of(text);
      }
}

/* A file with a few bytes changed, dropped or doubled: refused with words, or a well-formed page. */
static void test_mutations(void **state) {
  (void)state;
  static const char good[] =
      FILE_OF(DEVICE("Box"),
              ROW_OF(NAME("1"), "100", ", \"repetition_index\": 0, \"kv_len\": 64") ","
              ROW_OF(NAME("1"), "0.2", ", \"aggregate_name\": \"cv\"") ","
              ROW_OF(NAME("8"), "500", ", \"error\": 1e-7, \"tolerance\": 2e-7") ","
              ROW_OF("moe/cuda/mma/bf16/qwen/tokens:8", "40", ", \"skipped\": false"));
  static const char bytes[] = "\"{}[],:/\\0123456789-+.eENnulltrue<>&'%\xc3\x80\x01 ";
  char text[2 * sizeof good];
  uint64_t draw = 0;
  int pages = 0;
  for (int i = 0; i < 2000; i++) {
    size_t n = sizeof good - 1;
    memcpy(text, good, n);
    for (uint32_t changes = 1 + moi_random_below(5, draw++, 3); changes; changes--) {
      size_t at = moi_random_below(5, draw++, (uint32_t)n), length = 1 + moi_random_below(5, draw++, 12);
      if (length > n - at) length = n - at;
      switch (moi_random_below(5, draw++, 4)) {
      case 0:
        text[at] = bytes[moi_random_below(5, draw++, sizeof bytes - 1)];
        break;
      case 1:
        text[at] = (char)moi_random_bits(5, draw++);
        break;
      case 2:
        memmove(text + at, text + at + length, n - at - length);
        n -= length;
        break;
      case 3:
        memmove(text + at + length, text + at, n - at);
        n += length;
        break;
      }
    }
    write_bytes(0, text, n);
    if (!make(1)) pages++;
    else if (strncmp(error, path_of(0), strlen(path_of(0))) || strlen(error) < strlen(path_of(0)) + 5)
      fail_msg("refused without words: %s", error);
  }
  assert_in_range(pages, 200, 1800); /* both happen */
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_row),
      cmocka_unit_test(test_repetitions),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_attention),
      cmocka_unit_test(test_check),
      cmocka_unit_test(test_failures),
      cmocka_unit_test(test_nan),
      cmocka_unit_test(test_machines),
      cmocka_unit_test(test_committed),
      cmocka_unit_test(test_escape),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_extremes),
      cmocka_unit_test(test_mutations),
  };
  return cmocka_run_group_tests(tests, NULL, clean);
}
