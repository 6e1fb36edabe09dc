#include "bench/report/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static double position(const moi_axis *a, double v) {
  if (a->linear) return (v - a->least) / (a->most - a->least);
  return (log10(v) - log10(a->least)) / (log10(a->most) - log10(a->least));
}

static double at_x(const moi_plot *p, double v) { return p->left + position(&p->x, v) * (p->right - p->left); }
static double at_y(const moi_plot *p, double v) { return p->bottom - position(&p->y, v) * (p->bottom - p->top); }

/* Room round the data: a part of its length, and never less than a factor of 4 in all. */
static void widen(moi_axis *a) {
  if (a->linear) {
    a->least = 0;
    if (!(a->most > 0)) a->most = 1;
    return;
  }
  double middle = sqrt(a->least) * sqrt(a->most), half = pow(a->most / a->least, 0.54) * 1.1;
  if (half < 2) half = 2;
  a->least = middle / half;
  a->most = middle * half;
}

enum { MAX_TICKS = 12 };

/* 1-2-5 of each decade; where that is too many, 1-3; decades; every second, third, ... decade. */
static int log_ticks(const moi_axis *a, double *out, int most) {
  static const double steps[3][3] = {{1, 2, 5}, {1, 3, 0}, {1, 0, 0}};
  int low = (int)floor(log10(a->least)), high = (int)ceil(log10(a->most));
  for (int kind = 0, every = 1;; kind < 2 ? kind++ : every++) {
    int n = 0, full = 0;
    for (int d = low; d <= high && !full; d++)
      for (int s = 0; s < 3 && steps[kind][s] > 0; s++) {
        double v = steps[kind][s] * pow(10, d);
        if (v < a->least * 0.999 || v > a->most * 1.001 || (d - low) % every) continue;
        if (n == most) {
          full = 1;
          break;
        }
        out[n++] = v;
      }
    if (!full || every > 1000) return n;
  }
}

static int linear_ticks(const moi_axis *a, double *out, int most) {
  double step = pow(10, floor(log10(a->most / most)));
  static const double steps[] = {1, 2, 2.5, 5, 10};
  int n = 0;
  for (int i = 0; i < 5; i++)
    if (a->most / (step * steps[i]) <= most) {
      step *= steps[i];
      break;
    }
  for (; n < MAX_TICKS && n * step <= a->most * 1.001; n++) out[n] = n * step;
  return n;
}

static int ticks_of(const moi_axis *a, double *out, int most) {
  if (most > MAX_TICKS) most = MAX_TICKS;
  if (a->linear) return linear_ticks(a, out, most);
  if (!a->ticks || a->n_ticks > most) return log_ticks(a, out, most);
  memcpy(out, a->ticks, (size_t)a->n_ticks * sizeof *out);
  return a->n_ticks;
}

void moi_plot_open(moi_plot *p) {
  double ticks[MAX_TICKS];
  moi_page *page = p->page;
  p->left = 52;
  p->right = p->width - 12;
  p->top = 24;
  p->bottom = p->height - 38;
  p->last_label = -100;
  widen(&p->x);
  widen(&p->y);
  moi_page_put(page, "<svg class=\"plot\" viewBox=\"0 0 %f %f\" role=\"group\" aria-label=\"%s\">\n", p->width,
               p->height, p->label);
  moi_page_put(page, "<g class=\"grid\">");
  int n = ticks_of(&p->x, ticks, (int)((p->right - p->left) / 52));
  double last = -100;
  for (int i = 0; i < n; i++) {
    double x = at_x(p, ticks[i]);
    moi_words w = p->x.words(ticks[i]);
    double half = 3.4 * (double)strlen(w.s);
    moi_page_put(page, "<line x1=\"%f\" y1=\"%f\" x2=\"%f\" y2=\"%f\"/>", x, p->top, x, p->bottom);
    if (x - half < last) continue; /* its label would stand on the one before */
    moi_page_put(page, "<text x=\"%f\" y=\"%f\" text-anchor=\"middle\">%s</text>", x, p->bottom + 15, w.s);
    last = x + half;
  }
  n = ticks_of(&p->y, ticks, (int)((p->bottom - p->top) / 26));
  for (int i = 0; i < n; i++) {
    double y = at_y(p, ticks[i]);
    moi_page_put(page, "<line x1=\"%f\" y1=\"%f\" x2=\"%f\" y2=\"%f\"/>", p->left, y, p->right, y);
    moi_page_put(page, "<text x=\"%f\" y=\"%f\" text-anchor=\"end\">%s</text>", p->left - 5, y + 4,
                 p->y.words(ticks[i]).s);
  }
  moi_page_put(page, "</g>\n<g class=\"axis\"><text x=\"4\" y=\"13\">%s</text>", p->y.title);
  moi_page_put(page, "<text x=\"%f\" y=\"%f\" text-anchor=\"end\">%s</text>", p->right, p->height - 6, p->x.title);
  moi_page_put(page, "<path d=\"M%f %fV%fH%f\"/></g>\n", p->left, p->top, p->bottom, p->right);
}

void moi_plot_line(moi_plot *p, moi_style style, const double *x, const double *y, int n) {
  moi_page_put(p->page, "<path class=\"line c%d d%d\" d=\"", style.colour % MOI_PLOT_COLOURS,
               style.dash % MOI_PLOT_DASHES);
  for (int i = 0; i < n; i++) moi_page_put(p->page, "%r%f %f", i ? "L" : "M", at_x(p, x[i]), at_y(p, y[i]));
  moi_page_put(p->page, "\"/>\n");
}

void moi_plot_ceiling(moi_plot *p, double from_x, double y, const char *label) {
  double at = at_y(p, y), start = at_x(p, from_x);
  if (start < p->left) start = p->left;
  if (start > p->right) start = p->right;
  double text = p->last_label < 0 ? at - 4 : at + 13; /* the highest above its line, the others clear of the slope */
  if (text < p->last_label + 12) text = p->last_label + 12;
  p->last_label = text;
  moi_page_put(p->page, "<g class=\"limit\"><path d=\"M%f %fH%f\"/>", start, at, p->right);
  moi_page_put(p->page, "<text x=\"%f\" y=\"%f\" text-anchor=\"end\">%s</text></g>\n", p->right - 2, text, label);
}

void moi_plot_slope(moi_plot *p, double slope, double to, const char *label) {
  double x0 = p->x.least, x1 = to / slope;
  if (x0 * slope < p->y.least) x0 = p->y.least / slope;
  if (x1 > p->x.most) x1 = p->x.most;
  if (x1 <= x0) return;
  double ax = at_x(p, x0), ay = at_y(p, x0 * slope), bx = at_x(p, x1), by = at_y(p, x1 * slope);
  double angle = atan2(by - ay, bx - ax) * 180 / 3.14159265358979;
  moi_page_put(p->page, "<g class=\"limit\"><path d=\"M%f %fL%f %f\"/>", ax, ay, bx, by);
  moi_page_put(p->page, "<text transform=\"translate(%f %f) rotate(%f)\" text-anchor=\"middle\">%s</text></g>\n",
               (ax + bx) / 2 - 5, (ay + by) / 2 - 5, angle, label);
}

static void shape_path(moi_page *page, int shape, double x, double y) {
  switch (shape % MOI_PLOT_SHAPES) {
  case 0:
    moi_page_put(page, "<circle cx=\"%f\" cy=\"%f\" r=\"4\"/>", x, y);
    break;
  case 1:
    moi_page_put(page, "<path d=\"M%f %fh7v7h-7z\"/>", x - 3.5, y - 3.5);
    break;
  case 2:
    moi_page_put(page, "<path d=\"M%f %fl4.5 8h-9z\"/>", x, y - 5);
    break;
  case 3:
    moi_page_put(page, "<path d=\"M%f %fl5 5l-5 5l-5 -5z\"/>", x, y - 5);
    break;
  case 4:
    moi_page_put(page, "<path d=\"M%f %fl-4.5 -8h9z\"/>", x, y + 5);
    break;
  case 5:
    moi_page_put(page, "<path class=\"open\" d=\"M%f %fl7 7m0 -7l-7 7\"/>", x - 3.5, y - 3.5);
    break;
  }
}

void moi_plot_mark_begin(moi_plot *p, moi_style style, double x, double y) {
  double px = at_x(p, x), py = at_y(p, y);
  moi_page_put(p->page, "<g class=\"mark c%d\"><circle class=\"reach\" cx=\"%f\" cy=\"%f\" r=\"11\"/>",
               style.colour % MOI_PLOT_COLOURS, px, py);
  shape_path(p->page, style.shape, px, py);
  moi_page_put(p->page, "<title>");
}

void moi_plot_mark_end(moi_plot *p) { moi_page_put(p->page, "</title></g>\n"); }

void moi_plot_close(moi_plot *p) { moi_page_put(p->page, "</svg>\n"); }

void moi_plot_swatch(moi_page *page, moi_style style, int line) {
  moi_page_put(page, "<svg class=\"swatch\" viewBox=\"0 0 26 12\" aria-hidden=\"true\">");
  if (line)
    moi_page_put(page, "<path class=\"line c%d d%d\" d=\"M1 6H25\"/>", style.colour % MOI_PLOT_COLOURS,
                 style.dash % MOI_PLOT_DASHES);
  moi_page_put(page, "<g class=\"mark c%d\">", style.colour % MOI_PLOT_COLOURS);
  shape_path(page, style.shape, 13, 6);
  moi_page_put(page, "</g></svg>");
}
