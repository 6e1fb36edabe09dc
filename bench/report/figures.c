/* The sections that are plots: the roofline, and time against tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/report/report.h"

static moi_words power_words(double v) {
  moi_words out = moi_words_number(v);
  if (v >= 1 && v < 1e6) snprintf(out.s, sizeof out.s, "%.6g", v);
  else if (v > 0 && v < 1) snprintf(out.s, sizeof out.s, "%.2g", v);
  return out;
}

/* 200 ms, 1 s */
static moi_words time_words(double s) {
  moi_words out;
  static const char *const units[] = {"s", "ms", "\xc2\xb5s", "ns"};
  double v = s;
  int unit = 0;
  for (; unit < 3 && v < 0.999; unit++) v *= 1e3;
  snprintf(out.s, sizeof out.s, "%.3g\xc2\xa0%s", v, units[unit]);
  return out;
}

static moi_words percent_words(double v) {
  moi_words out;
  snprintf(out.s, sizeof out.s, "%.3g%%", 100 * v);
  return out;
}

static void reach(moi_axis *a, double v) {
  if (!(a->least <= v)) a->least = v;
  if (!(a->most >= v)) a->most = v;
}

/* ---- the roofline */

typedef struct ceiling {
  double value;
  char label[160];
} ceiling;

static int compare_ceilings(const void *a, const void *b) {
  const ceiling *x = a, *y = b;
  return x->value != y->value ? (x->value < y->value) - (x->value > y->value) : strcmp(x->label, y->label);
}

/* The compute peaks of a machine, the highest first. */
static int ceilings_of(const moi_report *report, int machine, ceiling *out) {
  static const char *const words[][2] = {{"f32", "fp32 FMA"}, {"int8", "int8 VNNI"}};
  char seen[MOI_REPORT_PEAKS][32];
  int n = 0;
  for (int i = 0; i < report->n_files; i++)
    for (int k = 0; k < report->files[i].n_peaks && report->files[i].machine == machine; k++) {
      const moi_report_peak *p = &report->files[i].peaks[k];
      int known = !strcmp(p->unit, "GB/s") || n == MOI_REPORT_PEAKS;
      for (int j = 0; j < n; j++) known |= !strcmp(seen[j], p->name);
      if (known) continue;
      const char *name = p->name;
      for (int w = 0; w < 2; w++)
        if (!strcmp(name, words[w][0])) name = words[w][1];
      snprintf(seen[n], sizeof seen[n], "%s", p->name);
      out[n].value = moi_machine_peak(report, machine, p->name);
      snprintf(out[n].label, sizeof out[n].label, "%s %s", name, moi_words_giga(out[n].value, p->unit).s);
      n++;
    }
  qsort(out, (size_t)n, sizeof *out, compare_ceilings);
  return n;
}

static int has_point(const moi_report_row *row) { return row->flops_per_second > 0 && row->bytes_per_second > 0; }
static double intensity(const moi_report_row *row) { return row->flops_per_second / row->bytes_per_second; }

/* Parts of a layer have shapes; colours too, unless those are the machines'. */
static moi_style part_style(const moi_view *view, const char *const *ops, int n_ops, const moi_report_row *row) {
  int op = 0;
  for (int i = 0; i < n_ops; i++)
    if (!strcmp(ops[i], row->op)) op = i;
  return (moi_style){moi_view_many(view) ? row->machine : op, op, 0};
}

enum { MAX_PARTS = 16 };

/* rows: of one machine, sorted so that the rows of a series stand together. */
static void put_roofline(const moi_view *view, const moi_report_row **rows, int n, const moi_axis *x, const moi_axis *y,
                         const char *const *ops, int n_ops, int wide) {
  const moi_report *report = view->report;
  ceiling limits[MOI_REPORT_PEAKS];
  int machine = rows[0]->machine, n_limits = ceilings_of(report, machine, limits);
  double bandwidth = moi_machine_peak(report, machine, "read");
  char label[160];
  snprintf(label, sizeof label, "Roofline of %s", report->machines[machine].name);
  moi_page_put(view->page, "<div class=\"%r\">", moi_view_many(view) ? "" : wide ? "wide" : "narrow");
  moi_plot p = {view->page, wide ? 900 : 344, wide ? 430 : 330, label, *x, *y, 0, 0, 0, 0, 0};
  moi_plot_open(&p);
  for (int i = 0; i < n_limits; i++)
    moi_plot_ceiling(&p, isnan(bandwidth) ? p.x.least : limits[i].value / bandwidth, limits[i].value, limits[i].label);
  if (!isnan(bandwidth)) {
    snprintf(label, sizeof label, "memory %s", moi_words_unit(bandwidth, "GB/s").s);
    moi_plot_slope(&p, bandwidth, n_limits ? limits[0].value : p.y.most, label);
  }
  for (int i = 0, run; i < n; i += run) {
    run = moi_rows_run(rows + i, n - i, "poyfbk");
    double lx[256], ly[256];
    int points = run < 256 ? run : 256;
    for (int j = 0; j < points; j++) {
      lx[j] = intensity(rows[i + j]);
      ly[j] = rows[i + j]->flops_per_second / 1e9;
    }
    moi_style style = part_style(view, ops, n_ops, rows[i]);
    if (points > 1) moi_plot_line(&p, style, lx, ly, points);
  }
  for (int i = 0; i < n; i++) {
    moi_plot_mark_begin(&p, part_style(view, ops, n_ops, rows[i]), intensity(rows[i]), rows[i]->flops_per_second / 1e9);
    moi_put_row_words(view, rows[i]);
    moi_page_put(view->page, ", %s", moi_words_unit(intensity(rows[i]), "FLOP/byte").s);
    moi_plot_mark_end(&p);
  }
  moi_plot_close(&p);
  moi_page_put(view->page, "</div>\n");
}

void moi_section_roofline(moi_view *view) {
  const moi_report *report = view->report;
  moi_page *page = view->page;
  moi_axis x = {"FLOP for each byte of memory read", NAN, NAN, 0, power_words, NULL, 0};
  moi_axis y = {"GFLOP/s", NAN, NAN, 0, power_words, NULL, 0};
  const char *ops[MAX_PARTS];
  int n_ops = 0, n = 0;
  if (moi_rows_sort(view->timed, view->n_timed, "mpoyfbkt")) page->failed = 1;
  for (int i = 0; i < view->n_timed; i++) {
    const moi_report_row *row = view->timed[i];
    if (!has_point(row)) continue;
    int known = n_ops == MAX_PARTS;
    for (int j = 0; j < n_ops; j++) known |= !strcmp(ops[j], row->op);
    if (!known) ops[n_ops++] = row->op;
    reach(&x, intensity(row));
    reach(&y, row->flops_per_second / 1e9);
    view->scratch[n++] = row;
  }
  moi_page_put(
      page, "<section id=\"roofline\"><h2>Roofline</h2>\n<p>To the left a call waits for memory, to the right for the "
            "multipliers: a good kernel lies close below the lines, and what lies above was served by a cache. "
            "Thin lines join the token counts of one kernel, from few (left) to many.</p>\n");
  for (int m = 0; m < report->n_machines; m++) {
    ceiling limits[MOI_REPORT_PEAKS];
    int n_limits = ceilings_of(report, m, limits);
    double bandwidth = moi_machine_peak(report, m, "read");
    for (int i = 0; i < n_limits && n; i++) {
      reach(&y, limits[i].value);
      if (!isnan(bandwidth)) reach(&x, limits[i].value / bandwidth);
    }
  }
  if (!n) moi_page_put(page, "<p class=\"none\">No row says how much it read and computed.</p>\n");
  else {
    moi_page_put(page, "<ul class=\"legend\">");
    for (int i = 0; i < n_ops; i++) {
      moi_page_put(page, "<li>");
      moi_plot_swatch(page, (moi_style){moi_view_many(view) ? -1 : i, i, 0}, 0);
      moi_page_put(page, "%s</li>", ops[i]);
    }
    moi_page_put(page, "</ul>\n<div class=\"roofs%r\">", moi_view_many(view) ? " plots" : "");
  }
  for (int i = 0, run; i < n; i += run) {
    run = moi_rows_run(view->scratch + i, n - i, "m");
    moi_page_put(page, "<figure>");
    if (moi_view_many(view)) {
      moi_page_put(page, "<figcaption>");
      moi_put_badge(view, view->scratch[i]->machine);
      moi_page_put(page, "%s</figcaption>\n", report->machines[view->scratch[i]->machine].name);
    }
    /* one has the whole width of a desk, and a drawing for it; several stand side by side */
    for (int wide = 0; wide < 2 - moi_view_many(view); wide++)
      put_roofline(view, view->scratch + i, run, &x, &y, ops, n_ops, wide);
    moi_page_put(page, "</figure>\n");
  }
  moi_page_put(page,
               "%r<p class=\"note\">The lines are the machine&#39;s measured peaks, the largest where several files "
               "measured them; int8 counts a multiply-add as two operations, too.</p></section>\n",
               n ? "</div>\n" : "");
}

/* ---- tokens */

enum { TIME, RATE, LIMIT, PANELS, MAX_TICKS = 12, MAX_POINTS = 256 };

static double value_of(const moi_report_row *row, int panel) {
  const char *limit;
  if (!(row->tokens > 0)) return NAN;
  return panel == TIME ? row->seconds : panel == RATE ? row->tokens / row->seconds : moi_row_limit(row, &limit);
}

typedef struct series {
  const moi_report_row **rows;
  int n;
  moi_style style;
} series;

static void put_panel(const moi_view *view, const series *all, int n, int panel) {
  static const char *const titles[] = {"time of a call", "tokens per second", "of the nearer limit"};
  static moi_words (*const words[])(double) = {time_words, moi_words_short, percent_words};
  double ticks[MAX_TICKS];
  char label[512];
  const moi_report_row *first = all[0].rows[0];
  snprintf(label, sizeof label, "%s against tokens: %.150s, %.150s", titles[panel], first->preset, first->op);
  moi_plot p = {view->page,
                344,
                236,
                label,
                {"tokens", NAN, NAN, 0, moi_words_short, ticks, 0},
                {titles[panel], NAN, NAN, panel == LIMIT, words[panel], NULL, 0},
                0,
                0,
                0,
                0,
                0};
  int values = 0;
  for (int i = 0; i < n; i++)
    for (int j = 0; j < all[i].n; j++) {
      double t = all[i].rows[j]->tokens, v = value_of(all[i].rows[j], panel);
      int at = 0;
      if (isnan(v)) continue;
      values++;
      reach(&p.x, t);
      reach(&p.y, v);
      while (at < p.x.n_ticks && at < MAX_TICKS && ticks[at] != t) at++;
      if (at == p.x.n_ticks && at < MAX_TICKS) ticks[p.x.n_ticks++] = t;
      else if (at == MAX_TICKS) p.x.ticks = NULL;
    }
  if (!values) return;
  for (int i = 1; i < p.x.n_ticks; i++) /* in order: a label gives way to the one before it */
    for (int j = i; j && ticks[j] < ticks[j - 1]; j--) {
      double swap = ticks[j];
      ticks[j] = ticks[j - 1];
      ticks[j - 1] = swap;
    }
  if (panel == LIMIT && p.y.most < 1) p.y.most = 1;
  moi_page_put(view->page, "<div>");
  moi_plot_open(&p);
  for (int i = 0; i < n; i++) {
    double x[MAX_POINTS], y[MAX_POINTS];
    int points = 0;
    for (int j = 0; j < all[i].n && points < MAX_POINTS; j++) {
      x[points] = all[i].rows[j]->tokens;
      y[points] = value_of(all[i].rows[j], panel);
      points += !isnan(y[points]);
    }
    if (points > 1) moi_plot_line(&p, all[i].style, x, y, points);
  }
  for (int i = 0; i < n; i++)
    for (int j = 0; j < all[i].n; j++) {
      double v = value_of(all[i].rows[j], panel);
      if (isnan(v)) continue;
      moi_plot_mark_begin(&p, all[i].style, all[i].rows[j]->tokens, v);
      moi_put_row_words(view, all[i].rows[j]);
      moi_plot_mark_end(&p);
    }
  moi_plot_close(&p);
  moi_page_put(view->page, "</div>\n");
}

/* The series of one model and part that have several token counts. */
static int series_of(const moi_view *view, const moi_report_row **rows, int n, series *out, int most) {
  int count = 0;
  for (int i = 0, run; i < n; i += run) {
    run = moi_rows_run(rows + i, n - i, "yfmbk");
    if (!(rows[i]->tokens > 0) || !moi_rows_compare(rows[i], rows[i + run - 1], "t") || count == most) continue;
    int same = 0;
    for (int j = 0; j < count; j++) same += !moi_rows_compare(out[j].rows[0], rows[i], "fm");
    int format = moi_view_many(view) ? moi_view_format(view, rows[i]->format) : 0;
    out[count++] = (series){rows + i, run, {moi_view_colour(view, rows[i]), format + same, format + same}};
  }
  return count;
}

/* In order of the machine or format, the one that colours do not tell comes last. */
static void put_legend(const moi_view *view, const series *all, int n) {
  int shapes = 0;
  for (int i = 1; i < n; i++) shapes |= moi_rows_compare(all[0].rows[0], all[i].rows[0], "y") != 0;
  moi_page_put(view->page, "<ul class=\"legend\">");
  for (int i = 0; i < n; i++) {
    const moi_report_row *row = all[i].rows[0];
    moi_page_put(view->page, "<li>");
    moi_plot_swatch(view->page, all[i].style, 1);
    moi_put_badge(view, row->machine);
    moi_page_put(view->page, "%s%r%s <span class=\"kernel\">%s %s</span></li>", row->format,
                 shapes && *row->series ? ", " : "", shapes ? row->series : "", row->backend, row->kernel);
  }
  moi_page_put(view->page, "</ul>\n");
}

enum { MAX_SERIES = 24 }; /* for a plot; more cannot be told from each other */

void moi_section_tokens(moi_view *view) {
  moi_page *page = view->page;
  int shown = 0, cut = 0;
  moi_page_put(
      page, "<section id=\"tokens\"><h2>Time and throughput against tokens</h2>\n<p>With more tokens, what is read (an "
            "expert&#39;s weights, the keys of a prompt) is read once for several of them: the time grows more slowly "
            "than the tokens, until the multipliers are the limit.</p>\n");
  if (moi_rows_sort(view->timed, view->n_timed, "poyfmbkts")) page->failed = 1;
  for (int i = 0, n; i < view->n_timed; i += n) {
    series all[MAX_SERIES];
    n = moi_rows_run(view->timed + i, view->n_timed - i, "po");
    int count = series_of(view, view->timed + i, n, all, MAX_SERIES);
    if (!count) continue;
    shown++;
    cut |= count == MAX_SERIES;
    moi_page_put(page, "<figure class=\"card\"><figcaption><h3>%s, %s</h3></figcaption>\n", all[0].rows[0]->preset,
                 all[0].rows[0]->op);
    put_legend(view, all, count);
    moi_page_put(page, "<div class=\"plots\">\n");
    for (int panel = 0; panel < PANELS; panel++) put_panel(view, all, count, panel);
    moi_page_put(page, "</div></figure>\n");
  }
  if (!shown) moi_page_put(page, "<p class=\"none\">No kernel was measured at more than one number of tokens.</p>\n");
  if (cut)
    moi_page_put(page, "<p class=\"note\">No plot has more than %d lines; the others are among all rows.</p>\n",
                 MAX_SERIES);
  moi_page_put(page, "</section>\n");
}
