/* The page: one HTML file that needs nothing beside it. */
#ifndef MOI_BENCH_REPORT_REPORT_H
#define MOI_BENCH_REPORT_REPORT_H

#include "bench/report/page.h"
#include "bench/report/plot.h"
#include "bench/report/rows.h"

/* Made of report.css and report.js when the program is built. */
extern const char moi_report_css[], moi_report_js[];

/* Writes the page: the same files, the same bytes. 0, or 1 if memory is out. */
int moi_report_write(const moi_report *report, moi_page *page);

/* ---- its sections, for each other */

enum { MOI_VIEW_FORMATS = 64 };
typedef struct moi_view {
  const moi_report *report;
  moi_page *page;
  const moi_report_row **timed, **scratch; /* rows that have a time, in any order; room for as many */
  int n_timed;
  const char *formats[MOI_VIEW_FORMATS];
  int n_formats;
} moi_view;

/* Colour by machine where there are several, else by format, so that one colour means one thing on the whole page. */
int moi_view_colour(const moi_view *view, const moi_report_row *row);
int moi_view_format(const moi_view *view, const char *format);
int moi_view_many(const moi_view *view); /* several machines */
/* The machine's letter in its colour; nothing if there is one machine only. */
void moi_put_badge(const moi_view *view, int machine);
/* "qwen3-30b-a3b, moe, kv_len 4096"; shape: the row's, or its series */
void moi_put_subject(const moi_view *view, const moi_report_row *row, const char *shape);
/* One line that says all of a row, for titles of marks. */
void moi_put_row_words(const moi_view *view, const moi_report_row *row);
/* A bar of 0 to 1 with its percentage. */
void moi_put_meter(const moi_view *view, double fraction, const char *of);

void moi_section_machines(moi_view *view);
void moi_section_answer(moi_view *view);
void moi_section_compare(moi_view *view);
void moi_section_kernels(moi_view *view);
void moi_section_roofline(moi_view *view);
void moi_section_tokens(moi_view *view);
void moi_section_formats(moi_view *view);
void moi_section_check(moi_view *view);
void moi_section_rows(moi_view *view);

#endif
