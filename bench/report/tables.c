/* The sections that are tables: the answer, machines, kernels, formats, the check, all rows. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/report/report.h"

static void sorted(moi_view *view, const char *keys) {
  if (moi_rows_sort(view->timed, view->n_timed, keys)) view->page->failed = 1;
}

static void put_none(const moi_view *view, const char *text) {
  moi_page_put(view->page, "<p class=\"none\">%s</p>\n", text);
}

/* ---- the answer */

static void put_answer(const moi_view *view, const moi_report_row *row, const char *label, int each) {
  const char *limit;
  double fraction = moi_row_limit(row, &limit);
  moi_page_put(view->page, "<td data-label=\"%s\"><p><strong>%s</strong> for %s", label, moi_words_time(row->seconds).s,
               moi_words_tokens(row->tokens).s);
  if (each && row->tokens > 1) moi_page_put(view->page, ", %s each", moi_words_time(row->seconds / row->tokens).s);
  moi_page_put(view->page, "</p><p class=\"kernel\">%s: %s %s</p><p>", row->format, row->backend, row->kernel);
  moi_put_meter(view, fraction, limit);
  moi_page_put(view->page, "</p></td>");
}

void moi_section_answer(moi_view *view) {
  moi_page *page = view->page;
  moi_page_put(page,
               "<section id=\"answer\"><h2>The answer first</h2>\n<p>The fastest kernel and format for the fewest and "
               "for the most tokens of a call, and how much of the nearer limit it reaches.</p>\n");
  if (!view->n_timed) {
    put_none(view, "No row has a time.");
    moi_page_put(page, "</section>\n");
    return;
  }
  moi_page_put(page, "<table class=\"cards\"><thead><tr><th scope=\"col\">Model and part</th><th scope=\"col\">Fewest "
                     "tokens</th><th scope=\"col\">Most tokens</th></tr></thead>\n<tbody>\n");
  sorted(view, "poymts");
  for (int i = 0, n; i < view->n_timed; i += n) {
    const moi_report_row **rows = view->timed + i;
    n = moi_rows_run(rows, view->n_timed - i, "poym");
    int last = 0;
    for (int j = 1; j < n; j++)
      if (moi_rows_compare(rows[last], rows[j], "t")) last = j;
    moi_page_put(page, "<tr><th scope=\"row\">");
    moi_put_badge(view, rows[0]->machine);
    moi_page_put(page, "%s <span class=\"op\">%s%r%s</span></th>", rows[0]->preset, rows[0]->op,
                 *rows[0]->series ? ", " : "", rows[0]->series);
    put_answer(view, rows[0], "Fewest tokens", 0);
    if (last) put_answer(view, rows[last], "Most tokens", 1);
    else moi_page_put(page, "<td data-label=\"Most tokens\"><span class=\"none\">one size only</span></td>");
    moi_page_put(page, "</tr>\n");
  }
  moi_page_put(
      page, "</tbody></table>\n<p class=\"note\">moe: router, experts and shared experts of a layer; experts: the "
            "experts alone; route: the router alone; attention: prompts (kv_len = tokens) and decodes (sequences = "
            "tokens). A kernel &#8220;a+b&#8221; is a where few tokens share the data that it reads, as an "
            "expert&#39;s weights, and b where many do.</p></section>\n");
}

/* ---- machines */

static void put_bar(const moi_view *view, int colour, double part, double limit) {
  moi_page_put(view->page, "<span class=\"bar c%d\" style=\"width:%f%%\" aria-hidden=\"true\">",
               colour % MOI_PLOT_COLOURS, 100 * part < 0.5 ? 0.5 : 100 * part);
  if (!isnan(limit)) moi_page_put(view->page, "<i style=\"width:%f%%\"></i>", limit < 1 ? 100 * limit : 100);
  moi_page_put(view->page, "</span>");
}

void moi_section_compare(moi_view *view) {
  moi_page *page = view->page;
  const moi_report *report = view->report;
  int shared = 0;
  moi_page_put(page,
               "<section id=\"compare\"><h2>Machines side by side</h2>\n<p>The same model, part, format and tokens, by "
               "the best kernel of each machine. The ratio is the time of %s divided by the machine&#39;s own: above 1 "
               "it is faster than %s.</p>\n",
               report->machines[0].letter, report->machines[0].letter);
  sorted(view, "pohftms");
  for (int i = 0, n; i < view->n_timed; i += n) {
    const moi_report_row **rows = view->timed + i, *best[MOI_REPORT_FILES] = {NULL};
    n = moi_rows_run(rows, view->n_timed - i, "pohft");
    int machines = 0;
    double slowest = 0;
    for (int j = 0; j < n; j++) {
      if (best[rows[j]->machine]) continue;
      best[rows[j]->machine] = rows[j];
      machines++;
      slowest = rows[j]->seconds > slowest ? rows[j]->seconds : slowest;
    }
    if (machines < 2) continue;
    if (!shared++) {
      moi_page_put(page, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Machines side by side\">"
                         "<table class=\"compare\"><thead><tr><th scope=\"col\">Row</th>");
      for (int m = 0; m < report->n_machines; m++) {
        moi_page_put(page, "<th scope=\"col\">");
        moi_put_badge(view, m);
        moi_page_put(page, "%s</th>", report->machines[m].name);
        if (m)
          moi_page_put(page, "<th scope=\"col\" class=\"number\">%s / %s</th>", report->machines[0].letter,
                       report->machines[m].letter);
      }
      moi_page_put(page, "</tr></thead>\n<tbody>\n");
    }
    moi_page_put(page, "<tr><th scope=\"row\">");
    moi_put_subject(view, rows[0], rows[0]->shape);
    moi_page_put(page, "<br/><span class=\"op\">%s, %s</span></th>", rows[0]->format,
                 moi_words_tokens(rows[0]->tokens).s);
    for (int m = 0; m < report->n_machines; m++) {
      if (best[m]) {
        const char *limit;
        moi_page_put(page, "<td>");
        put_bar(view, m, best[m]->seconds / slowest, moi_row_limit(best[m], &limit));
        moi_page_put(page, "<br/>%s</td>", moi_words_time(best[m]->seconds).s);
      } else moi_page_put(page, "<td class=\"none\">not measured</td>");
      if (m && best[m] && best[0]) {
        double ratio = best[0]->seconds / best[m]->seconds;
        moi_page_put(page, "<td class=\"number%r\">%s</td>",
                     ratio > 1.05   ? " faster"
                     : ratio < 0.95 ? " slower"
                                    : "",
                     moi_words_number(ratio).s);
      } else if (m) moi_page_put(page, "<td class=\"number none\">&#8211;</td>");
    }
    moi_page_put(page, "</tr>\n");
  }
  if (shared)
    moi_page_put(page,
                 "</tbody></table></div>\n<p class=\"note\">The full part of a bar is the time that the machine&#39;s "
                 "own limit would need.</p></section>\n");
  else {
    put_none(view, "No row was measured on more than one of these machines.");
    moi_page_put(page, "</section>\n");
  }
}

/* ---- kernels */

void moi_section_kernels(moi_view *view) {
  moi_page *page = view->page;
  int shown = 0, open = 0;
  moi_page_put(
      page, "<section id=\"kernels\"><h2>Backends and kernels against each other</h2>\n<p>Time of a call, shorter is "
            "better. The full part of a bar is the time that the nearer limit of the machine would need; the light "
            "part is what is lost.</p>\n");
  sorted(view, "poyts");
  for (int i = 0, n; i < view->n_timed; i += n) {
    const moi_report_row **rows = view->timed + i;
    n = moi_rows_run(rows, view->n_timed - i, "poyt");
    int differ = 0;
    for (int j = 1; j < n; j++) differ |= moi_rows_compare(rows[0], rows[j], "mbk") != 0;
    if (open && moi_rows_compare(rows[-1], rows[0], "poy")) {
      moi_page_put(page, "</div></div>\n");
      open = 0;
    }
    if (!differ) continue;
    if (!open) {
      moi_page_put(page, "<div class=\"card\"><h3>");
      moi_put_subject(view, rows[0], rows[0]->series);
      moi_page_put(page, "</h3>\n<div class=\"sizes\">\n");
    }
    open = 1;
    shown++;
    moi_page_put(page,
                 "<table class=\"bars\"><caption>%s</caption><thead class=\"unseen\"><tr><th scope=\"col\">Format and "
                 "kernel</th><th scope=\"col\">Time</th><th scope=\"col\">Of the limit</th></tr></thead><tbody>\n",
                 moi_words_tokens(rows[0]->tokens).s);
    for (int j = 0; j < n; j++) {
      const char *limit;
      double fraction = moi_row_limit(rows[j], &limit);
      moi_page_put(page, "<tr><th scope=\"row\">");
      moi_put_badge(view, rows[j]->machine);
      moi_page_put(page, "%s <span class=\"kernel\">%s %s</span></th><td>", rows[j]->format, rows[j]->backend,
                   rows[j]->kernel);
      put_bar(view, moi_view_colour(view, rows[j]), rows[j]->seconds / rows[n - 1]->seconds, fraction);
      moi_page_put(page, "</td><td class=\"number\">%s</td><td class=\"number\">%s</td></tr>\n",
                   moi_words_time(rows[j]->seconds).s, moi_words_percent(fraction).s);
    }
    moi_page_put(page, "</tbody></table>\n");
  }
  moi_page_put(page, "%r", open ? "</div></div>\n" : "");
  if (!shown)
    put_none(view, "These files have one kernel for each model, part and number of tokens: nothing to compare.");
  moi_page_put(page, "</section>\n");
}

/* ---- formats */

static void put_formats(moi_view *view, const moi_report_row **rows, int n) {
  moi_page *page = view->page;
  moi_page_put(page, "<div class=\"card\"><h3>");
  moi_put_subject(view, rows[0], rows[0]->series);
  moi_page_put(page,
               ", %s</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Formats\"><table "
               "class=\"formats\"><thead><tr><th scope=\"col\">Format</th><th scope=\"col\" class=\"number\">Time</th>"
               "<th scope=\"col\" class=\"number\">GB/s</th><th scope=\"col\">Of memory bandwidth</th></tr></thead>"
               "<tbody>\n",
               moi_words_tokens(rows[0]->tokens).s);
  for (int j = 0; j < n; j++) {
    moi_page_put(page, "<tr><th scope=\"row\">");
    moi_put_badge(view, rows[j]->machine);
    moi_page_put(page, "%s</th><td class=\"number\">%s</td><td class=\"number\">%s</td><td>", rows[j]->format,
                 moi_words_time(rows[j]->seconds).s, moi_words_number(rows[j]->bytes_per_second / 1e9).s);
    moi_page_put(page, "<span class=\"c%d\">", moi_view_colour(view, rows[j]) % MOI_PLOT_COLOURS);
    moi_put_meter(view, rows[j]->bandwidth_fraction, "");
    moi_page_put(page, "</span></td></tr>\n");
  }
  moi_page_put(page, "</tbody></table></div></div>\n");
}

void moi_section_formats(moi_view *view) {
  moi_page *page = view->page;
  int shown = 0;
  moi_page_put(
      page, "<section id=\"formats\"><h2>Formats side by side</h2>\n<p>For the fewest tokens, where reading is "
            "what takes time: a smaller format is faster as far as its kernel keeps up with memory. The fastest "
            "first.</p>\n<div class=\"panels\">\n");
  sorted(view, "poytfms");
  for (int i = 0, n; i < view->n_timed; i += n) {
    const moi_report_row **rows = view->timed + i;
    n = moi_rows_run(rows, view->n_timed - i, "poy");
    int least = moi_rows_run(rows, n, "t"), count = 0, differ = 0;
    for (int j = 0; j < least; j++) {
      if (j && !moi_rows_compare(rows[j - 1], rows[j], "fm")) continue;
      view->scratch[count++] = rows[j];
      differ |= moi_rows_compare(rows[0], rows[j], "f") && moi_rows_compare(rows[0], rows[j], "k");
    }
    if (!differ) continue; /* one format, or a kernel that does not care */
    if (moi_rows_sort(view->scratch, count, "s")) page->failed = 1;
    put_formats(view, view->scratch, count);
    shown++;
  }
  moi_page_put(page, "</div>\n");
  if (!shown) put_none(view, "These files have one format for each model and part.");
  moi_page_put(page, "</section>\n");
}

/* ---- the check */

static int is_checked(const moi_report_row *row) { return !isnan(row->error); }
static int is_beyond(const moi_report_row *row) { return row->error > row->tolerance; }

/* What of its tolerance an error takes; a tolerance of 0 asks for equality. */
static void put_share(const moi_view *view, const moi_report_row *row) {
  moi_page *page = view->page;
  double share = row->error / row->tolerance;
  char value[40];
  if (isnan(row->tolerance)) {
    moi_page_put(page, "<td class=\"none\" data-v=\"\">not recorded</td>");
    return;
  }
  if (row->tolerance == 0) share = is_beyond(row) ? 1e9 : 0;
  snprintf(value, sizeof value, "%.6g", share);
  moi_page_put(page, "<td data-v=\"%s\"%r>", value, is_beyond(row) ? " class=\"wrong\"" : "");
  if (row->tolerance > 0) moi_put_meter(view, share, "");
  else moi_page_put(page, "must be equal%r", is_beyond(row) ? "" : ", and is");
  moi_page_put(page, "%r</td>", is_beyond(row) ? " <strong>beyond</strong>" : "");
}

static void put_error(const moi_view *view, double v) {
  char value[40];
  snprintf(value, sizeof value, "%.2e", v);
  if (isnan(v)) moi_page_put(view->page, "<td class=\"number none\" data-v=\"\">not recorded</td>");
  else moi_page_put(view->page, "<td class=\"number\" data-v=\"%s\">%s</td>", value, v == 0 ? "0" : value);
}

void moi_section_check(moi_view *view) {
  moi_page *page = view->page;
  int checked = 0, without = 0;
  sorted(view, "pohtfms");
  for (int i = 0; i < view->n_timed; i++) {
    if (is_checked(view->timed[i])) checked++;
    else without++;
  }
  moi_page_put(page, "<section id=\"check\"><h2>Correctness beside speed</h2>\n");
  if (without)
    moi_page_put(
        page,
        "<p class=\"plain\"><strong>%d of %d timed rows carry no error figure in their file.</strong> <code>"
        "moiety bench</code> compares a part of each row&#39;s result (its first tokens) with the reference before it "
        "times it, and gives a wrong one no time; but how near its tolerance a row came is not in these files, so this "
        "page cannot show it. "
        "<code>moiety check</code> prints the worst error of each kernel.</p>\n",
        without, view->n_timed);
  if (checked) {
    moi_page_put(page,
                 "<p>The checked error of each row as a part of what it is allowed.</p>\n<div class=\"scroll\" "
                 "tabindex=\"0\" role=\"region\" aria-label=\"Correctness\"><table class=\"sortable\"><thead><tr>"
                 "<th scope=\"col\">Row</th><th scope=\"col\">Kernel</th><th scope=\"col\" class=\"number\">Time</th>"
                 "<th scope=\"col\" class=\"number\">Error</th><th scope=\"col\" class=\"number\">Tolerance</th>"
                 "<th scope=\"col\">Of the tolerance</th></tr></thead><tbody>\n");
    for (int i = 0; i < view->n_timed; i++) {
      const moi_report_row *row = view->timed[i];
      if (!is_checked(row)) continue;
      moi_page_put(page, "<tr><th scope=\"row\">");
      moi_put_badge(view, row->machine);
      moi_put_subject(view, row, row->shape);
      moi_page_put(page, ", %s, %s</th><td class=\"kernel\">%s %s</td>", row->format, moi_words_tokens(row->tokens).s,
                   row->backend, row->kernel);
      char value[40];
      snprintf(value, sizeof value, "%.9g", row->seconds);
      moi_page_put(page, "<td class=\"number\" data-v=\"%s\">%s</td>", value, moi_words_time(row->seconds).s);
      put_error(view, row->error);
      put_error(view, row->tolerance);
      put_share(view, row);
      moi_page_put(page, "</tr>\n");
    }
    moi_page_put(page, "</tbody></table></div>\n");
  }
  if (!checked && !without) put_none(view, "No row has a time.");
  moi_page_put(page, "</section>\n");
}

/* ---- all rows */

static void put_cell(const moi_view *view, double value, moi_words words) {
  char number[40];
  if (isnan(value)) {
    moi_page_put(view->page, "<td class=\"number none\" data-v=\"\">%s</td>", words.s);
    return;
  }
  snprintf(number, sizeof number, "%.9g", value);
  moi_page_put(view->page, "<td class=\"number\" data-v=\"%s\">%s</td>", number, words.s);
}

static void put_columns(const moi_view *view, int shapes, int also) {
  static const char *const numbers[] = {"Tokens", "Time",      "Spread",  "Tokens/s",
                                        "GB/s",   "Of memory", "GFLOP/s", "Of compute"};
  moi_page *page = view->page;
  moi_page_put(page, "<table id=\"all\" class=\"sortable\"><thead><tr>");
  if (moi_view_many(view)) moi_page_put(page, "<th scope=\"col\" data-filter=\"\">Machine</th>");
  moi_page_put(
      page,
      "<th scope=\"col\" data-filter=\"\">Model</th><th scope=\"col\" data-filter=\"\">Part</th><th scope=\"col\" "
      "data-filter=\"\">Format</th>%r",
      shapes ? "<th scope=\"col\">Shape</th>" : "");
  for (int i = 0; i < 8; i++) moi_page_put(page, "<th scope=\"col\" class=\"number\">%r</th>", numbers[i]);
  moi_page_put(
      page,
      "<th scope=\"col\">Compute peak</th><th scope=\"col\" data-filter=\"\">Backend</th><th scope=\"col\">Kernel"
      "</th><th scope=\"col\">Check</th>%r</tr></thead>\n<tbody>\n",
      also ? "<th scope=\"col\">Further numbers</th>" : "");
}

static void put_check(const moi_view *view, const moi_report_row *row) {
  moi_page *page = view->page;
  char text[96];
  if (row->failure) moi_page_put(page, "<td class=\"wrong\">failed: %s</td>", row->failure);
  else if (is_checked(row)) {
    if (isnan(row->tolerance)) snprintf(text, sizeof text, "%.1e, no tolerance", row->error);
    else snprintf(text, sizeof text, "%.1e of %.1e", row->error, row->tolerance);
    moi_page_put(page, "<td%r>%r%s</td>", is_beyond(row) ? " class=\"wrong\"" : "", is_beyond(row) ? "beyond: " : "",
                 text);
  } else moi_page_put(page, "<td class=\"none\">not recorded</td>");
}

void moi_section_rows(moi_view *view) {
  const moi_report *report = view->report;
  moi_page *page = view->page;
  int shapes = 0, also = 0, n = 0;
  for (int i = 0; i < report->n_rows; i++) {
    shapes |= *report->rows[i].shape != 0;
    also |= *report->rows[i].also != 0;
    view->scratch[n++] = &report->rows[i];
  }
  if (moi_rows_sort(view->scratch, n, "poythfmsbk")) page->failed = 1;
  moi_page_put(
      page, "<section id=\"rows\"><h2>All rows</h2>\n<p>Times are medians where a row was repeated; the spread is the "
            "slowest less the fastest repetition, as a part of the median.</p>\n<div id=\"filters\"></div>\n<div "
            "class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"All rows\">");
  put_columns(view, shapes, also);
  for (int i = 0; i < n; i++) {
    const moi_report_row *r = view->scratch[i];
    double spread = r->repetitions > 1 ? (r->high - r->low) / r->seconds : NAN, rate = r->tokens / r->seconds;
    moi_page_put(page, "<tr>");
    if (moi_view_many(view)) {
      moi_page_put(page, "<td>");
      moi_put_badge(view, r->machine);
      moi_page_put(page, "</td>");
    }
    moi_page_put(page, "<td>%s</td><td>%s</td><td>%s</td>", r->preset, r->op, r->format);
    if (shapes) moi_page_put(page, "<td class=\"shape\">%s</td>", r->shape);
    put_cell(view, r->tokens, moi_words_count(r->tokens));
    put_cell(view, r->seconds, moi_words_time(r->seconds));
    put_cell(view, spread, moi_words_percent(spread));
    put_cell(view, rate, moi_words_short(rate));
    put_cell(view, r->bytes_per_second, moi_words_number(r->bytes_per_second / 1e9));
    put_cell(view, r->bandwidth_fraction, moi_words_percent(r->bandwidth_fraction));
    put_cell(view, r->flops_per_second, moi_words_number(r->flops_per_second / 1e9));
    put_cell(view, r->compute_fraction, moi_words_percent(r->compute_fraction));
    moi_page_put(page, "<td>%s</td><td>%s</td><td class=\"kernel\">%s</td>", r->compute_name, r->backend, r->kernel);
    put_check(view, r);
    if (also) moi_page_put(page, "<td>%s</td>", r->also);
    moi_page_put(page, "</tr>\n");
  }
  moi_page_put(page, "</tbody></table></div></section>\n");
}
