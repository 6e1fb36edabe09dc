#include "core/choose.h"

#include <stdio.h>
#include <string.h>

int moi_row_serves(const moi_row *row, moi_op op, moi_format format) {
  return row->op == op && !(row->flags & MOI_ROW_REFERENCE) &&
         (row->format == format || row->format == MOI_FORMAT_NONE);
}

const char *moi_row_refusal(const moi_plan *plan, const moi_choice *c, uint32_t index, int asked) {
  const char *why = c->needs(plan, index, asked, c->user);
  uint32_t flags = c->row(index).flags;
  if (why) return why;
  if ((plan->plan_flags & MOI_NO_FALLBACK) && flags & MOI_ROW_FALLBACK) return "no MOI_NO_FALLBACK";
  if ((plan->plan_flags & MOI_DETERMINISTIC) && !(flags & MOI_DETERMINISTIC)) return "no MOI_DETERMINISTIC";
  if ((plan->plan_flags & MOI_BATCH_INVARIANT) && !(flags & MOI_BATCH_INVARIANT)) return "no MOI_BATCH_INVARIANT";
  return NULL;
}

moi_status moi_choose(const char *fn, moi_plan *plan, const moi_choice *c, int *found, uint32_t *few, uint32_t *many) {
  const char *format = moi_format_name(c->format), *what = c->what;
  if (!format) format = "any router";
  for (uint32_t i = 0; c->forced && i < c->n_rows; i++) {
    moi_row row = c->row(i);
    if (!moi_row_serves(&row, c->op, c->format) || strcmp(row.name, c->forced)) continue;
    const char *why = moi_row_refusal(plan, c, i, 1);
    if (why) return moi_fail(MOI_UNSUPPORTED, fn, "kernel: %s for %s needs %s", c->forced, what, why);
    *few = *many = i;
    *found = 1;
    return moi_plan_say(plan, "%s (%s): %s, as asked for\n", what, format, row.name);
  }
  char refused[384] = "";
  size_t at = 0;
  uint32_t serve = 0;
  *few = *many = UINT32_MAX;
  for (uint32_t i = 0; i < c->n_rows && *many == UINT32_MAX; i++) {
    moi_row row = c->row(i);
    if (!moi_row_serves(&row, c->op, c->format)) continue;
    serve++;
    const char *why = moi_row_refusal(plan, c, i, 0);
    if (why) {
      if (at < sizeof refused)
        at += (size_t)snprintf(refused + at, sizeof refused - at, "  refused %s: needs %s\n", row.name, why);
    } else if (!row.m_max) {
      *many = i;
    } else if (*few == UINT32_MAX && !(plan->plan_flags & MOI_BATCH_INVARIANT)) {
      *few = i; /* a batch-invariant plan must not change rows with the number of tokens */
    }
  }
  if (!serve && moi_pack_source(c->format) != c->format)
    return moi_fail(MOI_UNSUPPORTED, fn, "format: %s for %s is packed for the CPU, no %s kernel reads it: use %s", format,
                    what, c->backend, moi_format_name(moi_pack_source(c->format)));
  if (*many == UINT32_MAX)
    return moi_fail(MOI_UNSUPPORTED, fn, "format: no %s kernel for %s (%s) meets plan_flags\n%s", c->backend, what,
                    format, refused);
  if (*few == UINT32_MAX) *few = *many;
  moi_row a = c->row(*few), b = c->row(*many);
  moi_status status =
      *few == *many ? moi_plan_say(plan, "%s (%s): %s\n", what, format, b.name)
                    : moi_plan_say(plan, "%s (%s): %s for up to %u rows of %s, %s for more\n", what, format, a.name,
                                   a.m_max, c->op == MOI_OP_ATTENTION ? "a KV head" : "an expert", b.name);
  if (!status && refused[0]) status = moi_plan_say(plan, "%s", refused);
  if (!status && b.flags & MOI_ROW_FALLBACK)
    moi_log_line(plan->context, MOI_LOG_WARNING, "%s: %s (%s) falls back to the kernel '%s'", fn, what, format, b.name);
  return status;
}
