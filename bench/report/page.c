#include "bench/report/page.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DASH "\xe2\x80\x93"
#define NBSP "\xc2\xa0"

static void append(moi_page *page, const char *text, size_t size) {
  if (page->failed) return;
  if (size >= page->capacity - page->size || !page->text) {
    size_t capacity = page->capacity ? page->capacity : 1 << 16;
    while (size >= capacity - page->size) {
      if (capacity > SIZE_MAX / 2) {
        page->failed = 1;
        return;
      }
      capacity *= 2;
    }
    char *more = realloc(page->text, capacity);
    if (!more) {
      page->failed = 1;
      return;
    }
    page->text = more;
    page->capacity = capacity;
  }
  memcpy(page->text + page->size, text, size);
  page->size += size;
  page->text[page->size] = 0;
}

/* Bytes of the UTF-8 character at s and its number; 0 if there is none. */
static int decode(const unsigned char *s, uint32_t *out) {
  int n = s[0] < 0x80                   ? 1
          : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
          : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
          : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                        : 0;
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  static const unsigned char mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
  if (!n) return 0;
  uint32_t c = s[0] & mask[n];
  for (int i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0; /* the end of the text, too */
    c = c << 6 | (s[i] & 0x3f);
  }
  *out = c;
  return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

/* What would be no text, or would turn the text around it: control characters, non-characters, changes of direction. */
static int is_text(uint32_t c) {
  if (c < 0x20) return c == '\n' || c == '\t';
  return !(c >= 0x7f && c < 0xa0) && !(c >= 0x200e && c <= 0x200f) && !(c >= 0x202a && c <= 0x202e) &&
         !(c >= 0x2066 && c <= 0x2069) && !(c >= 0xfdd0 && c < 0xfdf0) && (c & 0xfffe) != 0xfffe;
}

static void escape(moi_page *page, const char *text) {
  const unsigned char *s = (const unsigned char *)text;
  while (*s) {
    uint32_t c = 0;
    int n = decode(s, &c);
    if (!n || !is_text(c)) append(page, "\xef\xbf\xbd", 3);
    else if (c == '<') append(page, "&lt;", 4);
    else if (c == '>') append(page, "&gt;", 4);
    else if (c == '&') append(page, "&amp;", 5);
    else if (c == '"') append(page, "&quot;", 6);
    else if (c == '\'') append(page, "&#39;", 5);
    else append(page, (const char *)s, (size_t)n);
    s += n ? n : 1;
  }
}

void moi_page_put(moi_page *page, const char *format, ...) {
  va_list list;
  va_start(list, format);
  for (const char *p = format; *p;) {
    size_t plain = strcspn(p, "%");
    append(page, p, plain);
    p += plain;
    if (!*p) break;
    char number[64];
    switch (p[1]) {
    case 's':
      escape(page, va_arg(list, const char *));
      break;
    case 'r': {
      const char *raw = va_arg(list, const char *);
      append(page, raw, strlen(raw));
      break;
    }
    case 'd':
      snprintf(number, sizeof number, "%d", va_arg(list, int));
      append(page, number, strlen(number));
      break;
    case 'f': {
      double v = va_arg(list, double);
      v = v > -1e6 && v < 1e6 ? v : 0; /* no coordinate */
      if (fabs(v) < 0.05) v = 0;       /* no "-0.0" */
      snprintf(number, sizeof number, "%.1f", v);
      append(page, number, strlen(number));
      break;
    }
    default:
      append(page, "%", 1);
      break;
    }
    p += p[1] ? 2 : 1;
  }
  va_end(list);
}

void moi_page_free(moi_page *page) {
  free(page->text);
  memset(page, 0, sizeof *page);
}

/* ---- numbers */

moi_words moi_words_number(double v) {
  moi_words out;
  double a = fabs(v);
  if (!isfinite(v)) snprintf(out.s, sizeof out.s, DASH);
  else if (v == 0) snprintf(out.s, sizeof out.s, "0");
  else if (a >= 1e7 || a < 1e-3) snprintf(out.s, sizeof out.s, "%.2g", v);
  else if (a >= 99.95) snprintf(out.s, sizeof out.s, "%.0f", v);
  else if (a >= 9.995) snprintf(out.s, sizeof out.s, "%.1f", v);
  else if (a >= 0.0995) snprintf(out.s, sizeof out.s, "%.2f", v);
  else snprintf(out.s, sizeof out.s, "%.2g", v);
  return out;
}

moi_words moi_words_short(double v) {
  static const char *const units[] = {"", "k", "M", "G", "T"};
  moi_words out;
  int unit = 0;
  if (!isfinite(v)) return moi_words_number(v);
  for (; unit < 4 && v >= 999.5; unit++) v /= 1e3;
  snprintf(out.s, sizeof out.s, "%.3g%s", v, units[unit]);
  return out;
}

moi_words moi_words_unit(double v, const char *unit) {
  moi_words out, number = moi_words_number(v);
  if (!isfinite(v)) return number;
  snprintf(out.s, sizeof out.s, "%.40s" NBSP "%.40s", number.s, unit);
  return out;
}

moi_words moi_words_giga(double v, const char *unit) {
  char tera[32];
  if (v < 9999.5) return moi_words_unit(v, unit);
  snprintf(tera, sizeof tera, "T%.30s", unit + 1);
  return moi_words_unit(v / 1e3, tera);
}

moi_words moi_words_time(double s) {
  if (!isfinite(s) || s <= 0) return moi_words_number(NAN);
  if (s < 0.9995e-6) return moi_words_unit(s * 1e9, "ns");
  if (s < 0.9995e-3) return moi_words_unit(s * 1e6, "\xc2\xb5s");
  if (s < 0.9995) return moi_words_unit(s * 1e3, "ms");
  return moi_words_unit(s, "s");
}

moi_words moi_words_percent(double f) {
  moi_words out;
  if (!isfinite(f) || f < 0) return moi_words_number(NAN);
  double p = 100 * f;
  if (p >= 1e6) return moi_words_unit(p, "%");
  snprintf(out.s, sizeof out.s,
           p >= 9.95 || p == 0 ? "%.0f" NBSP "%%"
           : p >= 0.095        ? "%.1f" NBSP "%%"
                               : "%.1g" NBSP "%%",
           p);
  return out;
}

moi_words moi_words_count(double v) {
  moi_words out;
  if (!isfinite(v)) return moi_words_number(NAN);
  snprintf(out.s, sizeof out.s, fabs(v) < 1e15 ? "%.0f" : "%.3g", v);
  return out;
}

moi_words moi_words_tokens(double tokens) {
  moi_words out;
  if (!isfinite(tokens)) {
    snprintf(out.s, sizeof out.s, "one call");
    return out;
  }
  snprintf(out.s, sizeof out.s, "%.40s" NBSP "token%s", moi_words_count(tokens).s, tokens == 1 ? "" : "s");
  return out;
}
