/* Which rows of a backend's kernel list serve a plan: the same walk, words and warning on every backend. */
#ifndef MOI_CORE_CHOOSE_H
#define MOI_CORE_CHOOSE_H

#include "core/backend.h"

/* In a row's flags, beside MOI_DETERMINISTIC and MOI_BATCH_INVARIANT. Backends have others of their own from 0x1000 on. */
#define MOI_ROW_FALLBACK 0x100u  /* right everywhere, fast nowhere: chosen with a warning, MOI_NO_FALLBACK refuses it */
#define MOI_ROW_REFERENCE 0x200u /* runs a whole op: no part of it is served by this row */

/* What choice sees of a row. */
typedef struct moi_row {
  const char *name;
  moi_op op;
  moi_format format; /* NONE: every format */
  uint32_t m_max;    /* up to so many rows of an expert or KV head it is meant for; 0: no bound */
  uint32_t flags;
} moi_row;

/* What is to be served, and the list. */
typedef struct moi_choice {
  const char *backend, *what; /* in texts: "CPU", "experts down" */
  moi_op op;
  moi_format format;
  const char *forced; /* a row's name or NULL */
  uint32_t n_rows;    /* of the list, best first */
  moi_row (*row)(uint32_t index);
  /* NULL, or what the row needs and has not, of this device and this plan. asked: by name. */
  const char *(*needs)(const moi_plan *plan, uint32_t index, int asked, const void *user);
  const void *user;
} moi_choice;

int moi_row_serves(const moi_row *row, moi_op op, moi_format format);

/* NULL if row `index` may be chosen, else what is missing, the plan's flags included. */
const char *moi_row_refusal(const moi_plan *plan, const moi_choice *choice, uint32_t index, int asked);

/* Chooses row *few for experts with at most its m_max rows and row *many for the others, perhaps the same, and says so in
 * the plan's text, with the better rows that were refused. *found is set if `forced` names a row that serves. */
moi_status moi_choose(const char *function, moi_plan *plan, const moi_choice *choice, int *found, uint32_t *few,
                      uint32_t *many);

#endif
