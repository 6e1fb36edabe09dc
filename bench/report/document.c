#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/report/report.h"

/* ---- what the sections share */

int moi_view_many(const moi_view *view) { return view->report->n_machines > 1; }

int moi_view_format(const moi_view *view, const char *format) {
  for (int i = 0; i < view->n_formats; i++)
    if (!strcmp(view->formats[i], format)) return i;
  return view->n_formats; /* a rare one, of more than are kept */
}

/* The formats with the most rows first: they get the colours that are told apart best. */
static int list_formats(moi_view *view) {
  int count[MOI_VIEW_FORMATS];
  for (int i = 0; i < view->n_timed; i++) view->scratch[i] = view->timed[i];
  if (moi_rows_sort(view->scratch, view->n_timed, "f")) return 1;
  for (int i = 0, n; i < view->n_timed; i += n) {
    n = moi_rows_run(view->scratch + i, view->n_timed - i, "f");
    int at = view->n_formats < MOI_VIEW_FORMATS ? view->n_formats++ : MOI_VIEW_FORMATS - 1;
    if (at == MOI_VIEW_FORMATS - 1 && view->formats[at] && count[at] >= n) continue;
    for (; at && count[at - 1] < n; at--) {
      count[at] = count[at - 1];
      view->formats[at] = view->formats[at - 1];
    }
    count[at] = n;
    view->formats[at] = view->scratch[i]->format;
  }
  return 0;
}

int moi_view_colour(const moi_view *view, const moi_report_row *row) {
  return moi_view_many(view) ? row->machine : moi_view_format(view, row->format);
}

void moi_put_badge(const moi_view *view, int machine) {
  if (!moi_view_many(view)) return;
  const moi_report_machine *m = &view->report->machines[machine];
  moi_page_put(view->page, "<abbr class=\"badge c%d\" title=\"%s\">%s</abbr> ", machine % MOI_PLOT_COLOURS, m->name,
               m->letter);
}

void moi_put_subject(const moi_view *view, const moi_report_row *row, const char *shape) {
  moi_page_put(view->page, "%s, %s%r%s", row->preset, row->op, *shape ? ", " : "", shape);
}

void moi_put_row_words(const moi_view *view, const moi_report_row *row) {
  moi_page *page = view->page;
  const char *limit;
  double fraction = moi_row_limit(row, &limit);
  if (moi_view_many(view))
    moi_page_put(page, "%s: %s\n", view->report->machines[row->machine].letter,
                 view->report->machines[row->machine].name);
  moi_put_subject(view, row, row->shape);
  moi_page_put(page, "\n%s: %s, %s\n%s: %s", row->format, row->backend, row->kernel, moi_words_tokens(row->tokens).s,
               moi_words_time(row->seconds).s);
  if (!isnan(fraction)) moi_page_put(page, ", %s of %s", moi_words_percent(fraction).s, limit);
  moi_page_put(page, "\n%s, %s", moi_words_unit(row->bytes_per_second / 1e9, "GB/s").s,
               moi_words_unit(row->flops_per_second / 1e9, "GFLOP/s").s);
}

void moi_put_meter(const moi_view *view, double fraction, const char *of) {
  if (isnan(fraction)) {
    moi_page_put(view->page, "<span class=\"none\">%s</span>", moi_words_percent(fraction).s);
    return;
  }
  double width = fraction < 1 ? 100 * fraction : 100;
  moi_page_put(view->page, "<span class=\"meter\" aria-hidden=\"true\"><i style=\"width:%f%%\"></i></span>%s%r%s",
               width, moi_words_percent(fraction).s, *of ? " of " : "", of);
}

/* ---- the head */

static const char *peak_words(const char *name) {
  static const char *const words[][2] = {{"read", "in order"},
                                         {"blocks", "in random blocks of the size of an expert"},
                                         {"f32", "fp32 multiply-adds"},
                                         {"int8", "int8 (VNNI)"},
                                         {"bf16", "bf16"}};
  for (int i = 0; i < 5; i++)
    if (!strcmp(name, words[i][0])) return words[i][1];
  return name;
}

/* "2026-11-23T07:03:19+00:00" for people; another form as it is. */
static moi_words date_words(const char *date) {
  moi_words out;
  static const char form[] = "dddd-dd-ddTdd:dd:dd";
  size_t i = 0;
  while (form[i] && (form[i] == 'd' ? date[i] >= '0' && date[i] <= '9' : date[i] == form[i])) i++;
  if (form[i]) snprintf(out.s, sizeof out.s, "%.60s", date);
  else
    snprintf(out.s, sizeof out.s, "%.10s %.5s %.20s", date, date + 11, strcmp(date + 19, "+00:00") ? date + 19 : "UTC");
  return out;
}

/* All peaks of a machine that are bandwidths, or all that are not: "26.9 GB/s in order, ...". */
static void put_peaks(const moi_view *view, int machine, int bandwidth) {
  const moi_report *report = view->report;
  moi_page *page = view->page;
  const moi_report_peak *seen[MOI_REPORT_FILES * MOI_REPORT_PEAKS];
  int n = 0;
  for (int i = 0; i < report->n_files; i++)
    for (int k = 0; k < report->files[i].n_peaks && report->files[i].machine == machine; k++) {
      const moi_report_peak *p = &report->files[i].peaks[k];
      int known = (strcmp(p->unit, "GB/s") == 0) != bandwidth;
      for (int j = 0; j < n; j++) known |= !strcmp(seen[j]->name, p->name);
      if (known) continue;
      seen[n++] = p;
      if (n > 1 && !strcmp(p->name, "read")) { /* the one that fractions are of comes first */
        seen[n - 1] = seen[0];
        seen[0] = p;
      }
    }
  if (!n) moi_page_put(page, "not recorded");
  for (int j = 0; j < n; j++) {
    double least = INFINITY, most = 0;
    for (int i = 0; i < report->n_files; i++)
      for (int k = 0; k < report->files[i].n_peaks && report->files[i].machine == machine; k++) {
        const moi_report_peak *p = &report->files[i].peaks[k];
        if (strcmp(p->name, seen[j]->name)) continue;
        least = p->value < least ? p->value : least;
        most = p->value > most ? p->value : most;
      }
    moi_words a = moi_words_number(most >= 9999.5 ? least / 1e3 : least), b = moi_words_giga(most, seen[j]->unit);
    moi_page_put(page, "%r", j ? "; " : "");
    if (strncmp(a.s, b.s, strlen(a.s))) moi_page_put(page, "%s to ", a.s);
    moi_page_put(page, "%s %s", b.s, peak_words(seen[j]->name));
  }
}

static void put_caches(const moi_view *view, const cJSON *context) {
  const cJSON *list = cJSON_GetObjectItemCaseSensitive(context, "caches"), *item;
  int n = 0;
  if (!cJSON_IsArray(list)) return;
  cJSON_ArrayForEach(item, list) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(item, "type");
    const cJSON *level = cJSON_GetObjectItemCaseSensitive(item, "level");
    const cJSON *size = cJSON_GetObjectItemCaseSensitive(item, "size");
    if (!cJSON_IsString(type) || !cJSON_IsNumber(level) || !cJSON_IsNumber(size) || n == 8) continue;
    double kib = size->valuedouble / 1024;
    char words[48];
    snprintf(words, sizeof words, "%.3g %s", kib >= 1024 ? kib / 1024 : kib, kib >= 1024 ? "MiB" : "KiB");
    moi_page_put(view->page, "%rL%s", n++ ? ", " : "<dt>Caches</dt><dd>", moi_words_count(level->valuedouble).s);
    if (strcmp(type->valuestring, "Unified"))
      moi_page_put(view->page, " %s",
                   !strcmp(type->valuestring, "Data")          ? "data"
                   : !strcmp(type->valuestring, "Instruction") ? "code"
                                                               : type->valuestring);
    moi_page_put(view->page, " %s", words);
  }
  if (n) moi_page_put(view->page, "</dd>\n");
}

/* Members of the context that this page does not know, as they are. */
static void put_other_context(const moi_view *view, const moi_report_file *f) {
  static const char *const known[] = {"date",
                                      "host_name",
                                      "executable",
                                      "num_cpus",
                                      "mhz_per_cpu",
                                      "caches",
                                      "load_avg",
                                      "library_build_type",
                                      "library_version",
                                      "json_schema_version",
                                      "command",
                                      "device",
                                      "git_commit",
                                      "isa",
                                      "layers",
                                      "memory_gb",
                                      "moiety_version",
                                      "threads",
                                      "cpu_scaling_enabled"};
  const cJSON *item;
  int n = 0;
  cJSON_ArrayForEach(item, f->context) {
    int skip = !item->string || !strncmp(item->string, "peak_", 5) || n == 32;
    for (size_t i = 0; i < sizeof known / sizeof *known && !skip; i++) skip = !strcmp(item->string, known[i]);
    if (skip || !(cJSON_IsString(item) || cJSON_IsNumber(item))) continue;
    n++;
    moi_page_put(view->page, "<dt>%s</dt><dd>%s</dd>\n", item->string,
                 cJSON_IsString(item) ? item->valuestring : moi_words_number(item->valuedouble).s);
  }
}

static void put_file(const moi_view *view, const moi_report_file *f) {
  moi_page *page = view->page;
  moi_page_put(page, "<details><summary>%s: %d row%r%r%s</summary>\n<dl>", f->path, f->n_rows,
               f->n_rows == 1 ? "" : "s", *f->date ? ", " : "", date_words(f->date).s);
  moi_page_put(page, "<dt>Command</dt><dd><code>%s</code></dd>\n", *f->command ? f->command : "not recorded");
  moi_page_put(page, "<dt>Layers</dt><dd>%s</dd>\n", *f->layers ? f->layers : "not recorded");
  moi_page_put(page, "<dt>moiety</dt><dd>%s%r%s</dd>\n<dt>Peaks</dt><dd>", f->version, *f->commit ? ", commit " : "",
               f->commit);
  for (int k = 0; k < f->n_peaks; k++)
    moi_page_put(page, "%r%s %s", k ? "; " : "", moi_words_giga(f->peaks[k].value, f->peaks[k].unit).s,
                 peak_words(f->peaks[k].name));
  moi_page_put(page, "%s</dd>\n", f->n_peaks ? "" : "not recorded");
  const cJSON *load = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(f->context, "load_avg"), 0);
  if (cJSON_IsNumber(load)) {
    moi_page_put(page, "<dt>Load before</dt><dd>%s", moi_words_number(load->valuedouble).s);
    if (!isnan(f->cpus)) moi_page_put(page, " on %s core%r", moi_words_count(f->cpus).s, f->cpus == 1 ? "" : "s");
    moi_page_put(page, "</dd>\n");
  }
  put_other_context(view, f);
  moi_page_put(page, "</dl></details>\n");
}

/* What the files of a machine say, each once. */
static void put_each(const moi_view *view, int machine, size_t member) {
  const moi_report *report = view->report;
  const char *seen[MOI_REPORT_FILES];
  int n = 0;
  for (int i = 0; i < report->n_files; i++) {
    const char *text = *(const char *const *)(const void *)((const char *)&report->files[i] + member);
    int known = report->files[i].machine != machine || !*text;
    for (int j = 0; j < n; j++) known |= !strcmp(seen[j], text);
    if (known) continue;
    moi_page_put(view->page, "%r%s", n ? ", " : "", text);
    seen[n++] = text;
  }
  if (!n) moi_page_put(view->page, "not recorded");
}

void moi_section_machines(moi_view *view) {
  const moi_report *report = view->report;
  moi_page *page = view->page;
  moi_page_put(page, "<section id=\"machines\"><h2>What was measured</h2>\n<div class=\"machines\">\n");
  for (int m = 0; m < report->n_machines; m++) {
    const moi_report_file *f = &report->files[report->machines[m].first_file];
    const cJSON *mhz = cJSON_GetObjectItemCaseSensitive(f->context, "mhz_per_cpu");
    moi_page_put(page, "<div class=\"card\"><h3>");
    moi_put_badge(view, m);
    moi_page_put(page, "%s</h3>\n<dl class=\"facts\"><dt>Device</dt><dd>%s", report->machines[m].name,
                 *f->device ? f->device : "not recorded");
    if (!isnan(f->cpus)) moi_page_put(page, ", %s core%r", moi_words_count(f->cpus).s, f->cpus == 1 ? "" : "s");
    if (cJSON_IsNumber(mhz) && mhz->valuedouble > 0)
      moi_page_put(page, ", %s MHz", moi_words_number(mhz->valuedouble).s);
    if (!isnan(f->memory)) moi_page_put(page, ", %s of memory", moi_words_giga(f->memory, "GB").s);
    moi_page_put(page, "</dd>\n<dt>Ran on</dt><dd>%s%r%s</dd>\n",
                 isnan(f->threads) ? "" : moi_words_count(f->threads).s,
                 isnan(f->threads) ? ""
                 : f->threads == 1 ? " thread, "
                                   : " threads, ",
                 *f->isa ? f->isa : "instruction set or driver not recorded");
    put_caches(view, f->context);
    moi_page_put(page, "<dt>Memory reads</dt><dd>");
    put_peaks(view, m, 1);
    moi_page_put(page, "</dd>\n<dt>Computes</dt><dd>");
    put_peaks(view, m, 0);
    moi_page_put(page, "</dd>\n<dt>moiety</dt><dd>");
    put_each(view, m, offsetof(moi_report_file, version));
    moi_page_put(page, ", commit ");
    put_each(view, m, offsetof(moi_report_file, commit));
    moi_page_put(page, "</dd></dl>\n");
    if (report->machines[m].n_files > 1)
      moi_page_put(page,
                   "<p class=\"note\">The limits were measured anew for each of its %d files: from the least to the "
                   "largest.</p>\n",
                   report->machines[m].n_files);
    for (int i = 0; i < report->n_files; i++)
      if (report->files[i].machine == m) put_file(view, &report->files[i]);
    moi_page_put(page, "</div>\n");
  }
  moi_page_put(page,
               "</div>\n<p class=\"note\">All limits here are measured, none is a data sheet's. Weights come from "
               "memory, as in a model; every call has other tokens and other experts.</p></section>\n");
}

static void put_failures(const moi_view *view) {
  const moi_report *report = view->report;
  int n = 0;
  for (int i = 0; i < report->n_rows; i++) n += report->rows[i].failure != NULL;
  if (!n) return;
  moi_page_put(view->page,
               "<div class=\"warning\" role=\"note\"><p><strong>%d row%r failed and %r no time:</strong></p><ul>\n", n,
               n == 1 ? "" : "s", n == 1 ? "has" : "have");
  n = 0;
  for (int i = 0; i < report->n_rows; i++) {
    const moi_report_row *row = &report->rows[i];
    if (!row->failure || n++ >= 20) continue;
    moi_page_put(view->page, "<li>");
    moi_put_badge(view, row->machine);
    moi_put_subject(view, row, row->shape);
    moi_page_put(view->page, ", %s, %s %s, %s: %s</li>\n", row->format, row->backend, row->kernel,
                 moi_words_tokens(row->tokens).s, row->failure);
  }
  moi_page_put(view->page, "</ul>%r</div>\n", n > 20 ? "<p>and more: see all rows.</p>" : "");
}

static void put_head(const moi_view *view) {
  const moi_report *report = view->report;
  moi_page *page = view->page;
  char dates[2][16] = {"", ""};
  for (int i = 0; i < report->n_files; i++) {
    char day[16];
    snprintf(day, sizeof day, "%.10s", report->files[i].date);
    if (!*day) continue;
    if (!*dates[0] || strcmp(day, dates[0]) < 0) memcpy(dates[0], day, sizeof day);
    if (strcmp(day, dates[1]) > 0) memcpy(dates[1], day, sizeof day);
  }
  moi_page_put(page,
               "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
               "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
               "<meta name=\"color-scheme\" content=\"light dark\"/>\n"
               "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
               "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\"/>\n");
  moi_page_put(page, "<title>moiety on ");
  if (moi_view_many(view)) moi_page_put(page, "%d machines", report->n_machines);
  else moi_page_put(page, "%s", report->machines[0].name);
  moi_page_put(page,
               "</title>\n<style>\n%r</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#answer\">To the figures</a>\n"
               "<header><div class=\"top\"><p class=\"brand\">moiety</p><div id=\"tools\"></div></div>\n<h1>",
               moi_report_css);
  if (moi_view_many(view)) moi_page_put(page, "Mixture-of-Experts on %d machines", report->n_machines);
  else moi_page_put(page, "Mixture-of-Experts on %s", report->machines[0].name);
  moi_page_put(page, "</h1>\n<p class=\"lead\">%d row%r of <code>moiety bench</code> from %d file%r", report->n_rows,
               report->n_rows == 1 ? "" : "s", report->n_files, report->n_files == 1 ? "" : "s");
  if (*dates[0])
    moi_page_put(page, ", measured %s%r%s", dates[0], strcmp(dates[0], dates[1]) ? " to " : "",
                 strcmp(dates[0], dates[1]) ? dates[1] : "");
  moi_page_put(page,
               ". Each time is told against the nearer of the machine&#39;s two measured limits: reading memory, and "
               "multiplying.</p>\n</header>\n");
}

static void put_nav(const moi_view *view) {
  static const char *const links[][2] = {
      {"machines", "Machine"}, {"answer", "Answer"},     {"compare", "Machines compared"},
      {"kernels", "Kernels"},  {"roofline", "Roofline"}, {"tokens", "Tokens"},
      {"formats", "Formats"},  {"check", "Correctness"}, {"rows", "All rows"}};
  moi_page_put(view->page, "<nav aria-label=\"Sections\"><ul>");
  for (int i = 0; i < 9; i++)
    if (i != 2 || moi_view_many(view))
      moi_page_put(view->page, "<li><a href=\"#%r\">%r%r</a></li>", links[i][0], links[i][1],
                   !i && moi_view_many(view) ? "s" : "");
  moi_page_put(view->page, "</ul></nav>\n<main>\n");
}

int moi_report_write(const moi_report *report, moi_page *page) {
  moi_view view = {report, page, NULL, NULL, 0, {NULL}, 0};
  size_t n = (size_t)report->n_rows + 1;
  view.timed = malloc(n * sizeof *view.timed);
  view.scratch = malloc(n * sizeof *view.scratch);
  if (!view.timed || !view.scratch) page->failed = 1;
  for (int i = 0; i < report->n_rows && !page->failed; i++)
    if (!report->rows[i].failure) view.timed[view.n_timed++] = &report->rows[i];
  if (!page->failed && !list_formats(&view)) {
    put_head(&view);
    put_nav(&view);
    put_failures(&view);
    moi_section_machines(&view);
    moi_section_answer(&view);
    if (moi_view_many(&view)) moi_section_compare(&view);
    moi_section_kernels(&view);
    moi_section_roofline(&view);
    moi_section_tokens(&view);
    moi_section_formats(&view);
    moi_section_check(&view);
    moi_section_rows(&view);
    moi_page_put(page,
                 "</main>\n<footer><p>Written by <code>moiety report</code>. This file needs nothing beside it.</p>"
                 "</footer>\n<div id=\"tip\" role=\"status\" hidden=\"\"></div>\n<script>\n%r</script>\n"
                 "</body>\n</html>\n",
                 moi_report_js);
  }
  free(view.timed);
  free(view.scratch);
  return page->failed || !page->size;
}
