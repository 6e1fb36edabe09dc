/* What the fuzz targets share: an input that is read as numbers, memory whose every byte outside is a trap, and the way a
 * finding is told. Each target is one file with LLVMFuzzerTestOneInput. */
#ifndef MOI_TESTS_FUZZ_H
#define MOI_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <moiety.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* ---- findings: targets run with stdout and stderr closed; these still reach the log */

#ifdef __GNUC__
__attribute__((format(printf, 1, 2), noreturn))
#endif
void moi_finding(const char *format, ...);
#define MOI_EXPECT(condition, ...)                                                                                     \
  do {                                                                                                                 \
    if (!(condition)) moi_finding(__VA_ARGS__);                                                                        \
  } while (0)

/* A status of the table, with a text if it is a failure; never MOI_INTERNAL. Returns it. */
moi_status moi_known(moi_status status);

/* ---- input: behind its end it reads as zeros */

typedef struct moi_input {
  const uint8_t *at, *end;
} moi_input;

static inline uint32_t moi_u8(moi_input *in) { return in->at < in->end ? *in->at++ : 0; }
static inline uint32_t moi_u32(moi_input *in) {
  uint32_t v = moi_u8(in);
  v |= moi_u8(in) << 8;
  v |= moi_u8(in) << 16;
  return v | moi_u8(in) << 24;
}
/* 0..n-1 of one byte, for n <= 256 */
static inline uint32_t moi_below(moi_input *in, uint32_t n) { return moi_u8(in) % n; }
/* 1 once in n */
static inline int moi_once_in(moi_input *in, uint32_t n) { return moi_below(in, n) == n - 1; }
/* A number at an edge, small, or any. */
uint32_t moi_odd_number(moi_input *in);
/* A type of activations, 0 among them. */
moi_format moi_dense_type(moi_input *in);
/* A format and the least n and k that its matrices are multiples of. */
moi_format moi_any_format(moi_input *in, uint32_t *unit);

/* ---- memory: given back all at once by moi_traps_check */

/* size bytes. The byte before and the byte behind are poisoned, an unreadable page follows. */
void *moi_trap(size_t size, size_t align);
/* A view of them; now and then by way of an offset. */
moi_buffer moi_trap_view(moi_input *in, size_t size, size_t align);
/* The struct `s`, whose struct_size may be anything, in memory of just that many bytes; what lies behind what the struct
 * has is 0, or `tail`. */
void *moi_trap_struct(const void *s, size_t size, uint8_t tail);
/* Writes outside are a finding. */
void moi_traps_check(void);

static inline uint8_t *moi_bytes_of(moi_buffer b) { return b.ptr ? (uint8_t *)b.ptr + b.offset : NULL; }

/* ---- contents */

typedef enum moi_contents {
  MOI_CONTENTS_NORMAL,  /* numbers about 1 */
  MOI_CONTENTS_SPECIAL, /* NaN, infinities, zeros and subnormals among them */
  MOI_CONTENTS_BITS,    /* any bits */
  MOI_CONTENTS_ZERO,
  MOI_CONTENTS_COUNT
} moi_contents;

void moi_fill(moi_buffer b, moi_format type, moi_contents contents, uint64_t seed);

/* ---- damage to descs and args */

/* Which bytes of a struct are pointers or views. Pointers cannot be checked by any library: they are left alone, and views
 * become absent, smaller or misaligned, but never longer than what they name. */
typedef struct moi_shape {
  size_t size, pointers[4];
  int n_pointers;
  size_t first_view;
  int n_views;
} moi_shape;

void moi_damage(moi_input *in, void *s, const moi_shape *shape);
void moi_damage_view(moi_input *in, moi_buffer *b);
/* The size that struct_size claims, cut to that of the struct. */
size_t moi_claimed(const void *s, size_t size);

/* ---- contexts: every level of instruction set, one worker and several; made once */

moi_context *moi_any_context(moi_input *in, moi_context **other);
/* A row of the kernel list, NULL (mostly), or no name at all. */
const char *moi_any_kernel(moi_input *in);

/* A workspace for the plan, poisoned; size 0 if it needs none. */
moi_buffer moi_workspace(const moi_plan *plan);

#endif
