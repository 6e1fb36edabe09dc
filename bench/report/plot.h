/* Plots as SVG. They are drawn here, not by the page's script: so they are there with scripts off and on paper, and the
 * same files give the same bytes. The script adds no more than the box with a mark's title on hover, tap or key. */
#ifndef MOI_BENCH_REPORT_PLOT_H
#define MOI_BENCH_REPORT_PLOT_H

#include "bench/report/page.h"

/* Series have one of the style sheet's colours, a shape and a dash; the numbers wrap round. */
enum { MOI_PLOT_COLOURS = 7, MOI_PLOT_SHAPES = 6, MOI_PLOT_DASHES = 4 };
typedef struct moi_style {
  int colour, shape, dash;
} moi_style;

typedef struct moi_axis {
  const char *title;
  double least, most; /* of the data, positive if logarithmic; nice ends are made of them */
  int linear;         /* from 0 */
  moi_words (*words)(double value);
  const double *ticks; /* NULL: round numbers */
  int n_ticks;
} moi_axis;

typedef struct moi_plot {
  moi_page *page;
  double width, height;
  const char *label; /* for those who cannot see it */
  moi_axis x, y;
  double left, right, top, bottom, last_label; /* set by open */
} moi_plot;

void moi_plot_open(moi_plot *plot);
/* A line through points in order; values outside the axes are cut off by the plot's frame. */
void moi_plot_line(moi_plot *plot, moi_style style, const double *x, const double *y, int n);
/* A limit: a line over the whole width, labelled at its right end. Call them from the highest to the lowest. */
void moi_plot_ceiling(moi_plot *plot, double from_x, double y, const char *label);
/* A limit y = slope * x up to the value `to`, labelled along it. Both axes are logarithmic. */
void moi_plot_slope(moi_plot *plot, double slope, double to, const char *label);
/* A mark; what moi_page_put writes between begin and end is its title. */
void moi_plot_mark_begin(moi_plot *plot, moi_style style, double x, double y);
void moi_plot_mark_end(moi_plot *plot);
void moi_plot_close(moi_plot *plot);

/* A small SVG of a series, for legends. */
void moi_plot_swatch(moi_page *page, moi_style style, int line);

#endif
