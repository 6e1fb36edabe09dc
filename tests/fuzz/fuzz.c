#include "tests/fuzz/fuzz.h"

#include <sanitizer/asan_interface.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench/rig/arena.h"
#include "bench/rig/random.h"

static FILE *told;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  told = fdopen(dup(2), "w");
  return 0;
}

void moi_finding(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fputs("FINDING: ", told);
  vfprintf(told, format, list);
  fputc('\n', told);
  fflush(told);
  va_end(list);
  abort();
}

moi_status moi_known(moi_status status) {
  MOI_EXPECT((uint32_t)status <= MOI_NO_DEVICE, "status %d: %s", (int)status, moi_last_error());
  MOI_EXPECT(!status || moi_last_error()[0], "status %d without a text", (int)status);
  return status;
}

/* ---- input */

uint32_t moi_odd_number(moi_input *in) {
  static const uint32_t odd[] = {0,          1,          2,          3,          7,          8,          15,
                                 16,         31,         32,         33,         63,         64,         65,
                                 127,        128,        255,        256,        1023,       1024,       1025,
                                 65535,      65536,      65537,      0x00ffffff, 0x01000000, 0x7fffffff, 0x80000000,
                                 0x80000001, 0xfffffff8, 0xffffffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x3f800000,
                                 0xbf800000, 0x10000000, 0x7f7fffff};
  uint32_t how = moi_u8(in);
  if (how < 40) return moi_u32(in);
  if (how < 100) return how - 40;
  return odd[how % (sizeof odd / sizeof *odd)];
}

moi_format moi_dense_type(moi_input *in) {
  static const moi_format types[] = {MOI_FORMAT_NONE, MOI_FORMAT_F32, MOI_FORMAT_F16, MOI_FORMAT_BF16};
  return types[moi_below(in, 4)];
}

moi_format moi_any_format(moi_input *in, uint32_t *unit) {
  static const uint32_t units[] = {1, 8, 16, 32, 128, 256};
  uint32_t count = 0;
  while (moi_format_at(count)) count++;
  moi_format format = moi_format_at(moi_below(in, count));
  moi_format_sizes sizes;
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    *unit = units[i];
    if (!moi_format_size(format, *unit, *unit, &sizes)) break;
  }
  return format;
}

/* ---- memory */

enum { ZONE = 256 };
static moi_arena arena = {MOI_ARENA_GUARD, NULL, 0, 0};

void *moi_trap(size_t size, size_t align) {
  uint8_t *p = moi_arena_take(&arena, size, align, "a view");
  const moi_block *b = &arena.blocks[arena.n_blocks - 1];
  ASAN_POISON_MEMORY_REGION(p - ZONE, ZONE);
  ASAN_POISON_MEMORY_REGION(p + size, b->tail);
  return p;
}

moi_buffer moi_trap_view(moi_input *in, size_t size, size_t align) {
  moi_buffer b = moi_ptr(moi_trap(size, align), size);
  if (moi_once_in(in, 8)) {
    uint64_t offset = align * (1 + moi_below(in, 16));
    b.ptr = (uint8_t *)b.ptr - offset;
    b.offset = offset;
  }
  return b;
}

void *moi_trap_struct(const void *s, size_t size, uint8_t tail) {
  size_t claimed;
  memcpy(&claimed, s, sizeof claimed);
  /* what is refused at first sight is no more than its head */
  size_t room = claimed % sizeof(size_t) || claimed > 65536 || claimed < 16 ? 16 : claimed;
  uint8_t *p = moi_trap(room, sizeof(size_t));
  memset(p, tail, room);
  memcpy(p, s, room < size ? room : size);
  return p;
}

void moi_traps_check(void) {
  for (size_t i = 0; i < arena.n_blocks; i++) {
    const moi_block *b = &arena.blocks[i];
    ASAN_UNPOISON_MEMORY_REGION(b->ptr - ZONE, ZONE + b->size + b->tail);
  }
  long long offset = 0;
  MOI_EXPECT(!moi_arena_damage(&arena, &offset), "written outside a view, at %lld", offset);
  moi_arena_free(&arena);
}

/* ---- contents */

static uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static uint32_t number(moi_format type, moi_contents contents, uint64_t seed, uint64_t i) {
  static const uint32_t special[][3] = {
      /* f32, f16, bf16 */
      {0x7fc00000, 0x7e00, 0x7fc0}, {0x7f800000, 0x7c00, 0x7f80}, {0xff800000, 0xfc00, 0xff80}, {0, 0, 0},
      {0x80000000, 0x8000, 0x8000}, {1, 1, 1},                    {0x7f7fffff, 0x7bff, 0x7f7f}, {0xffffffff, 0xffff, 0xffff}};
  int column = type == MOI_FORMAT_F16 ? 1 : type == MOI_FORMAT_BF16 ? 2 : 0;
  uint64_t bits = moi_random_bits(seed, i);
  if (contents == MOI_CONTENTS_BITS) return (uint32_t)bits;
  if (contents == MOI_CONTENTS_SPECIAL && bits % 8 == 0) return special[bits / 8 % 8][column];
  float x = moi_random_normal(seed + 1, i);
  if (column == 2) return float_bits(x) >> 16;
  if (column == 0) return float_bits(x);
  uint32_t b = float_bits(x), e = (b >> 23) & 255;
  return e < 113 ? 0 : (b >> 16 & 0x8000) | (e - 112) << 10 | (b >> 13 & 0x3ff); /* cut, which is good enough */
}

void moi_fill(moi_buffer b, moi_format type, moi_contents contents, uint64_t seed) {
  uint8_t *p = moi_bytes_of(b);
  if (contents == MOI_CONTENTS_ZERO) {
    memset(p, 0, b.size);
    return;
  }
  if (contents == MOI_CONTENTS_BITS) {
    for (uint64_t i = 0; i < b.size; i += 8) {
      uint64_t bits = moi_random_bits(seed, i);
      memcpy(p + i, &bits, b.size - i < 8 ? b.size - i : 8);
    }
    return;
  }
  uint32_t width = type == MOI_FORMAT_F16 || type == MOI_FORMAT_BF16 ? 2 : 4;
  for (uint64_t i = 0; i < b.size / width; i++) {
    uint32_t bits = number(type, contents, seed, i);
    memcpy(p + i * width, &bits, width);
  }
}

/* ---- damage */

size_t moi_claimed(const void *s, size_t size) {
  size_t claimed;
  memcpy(&claimed, s, sizeof claimed);
  return claimed < size ? claimed : size;
}

void moi_damage_view(moi_input *in, moi_buffer *b) {
  switch (moi_below(in, 8)) {
  case 0: memset(b, 0, sizeof *b); break;
  case 1: b->ptr = NULL; break;
  case 2: b->ptr = NULL, b->handle = 1 + moi_u32(in); break;
  case 3: b->size /= 2; break;
  case 4: b->size -= b->size > 0; break;
  case 5: b->size = 0; break;
  case 6:
    if (b->ptr && b->size) b->offset++, b->size--;
    break;
  default: b->handle = moi_u32(in); break;
  }
}

void moi_damage(moi_input *in, void *s, const moi_shape *shape) {
  uint8_t *bytes = s;
  for (uint32_t n = 1 + moi_below(in, 3); n > 0; n--) {
    uint32_t how = moi_below(in, 16);
    if (shape->n_views && how < 6) {
      moi_damage_view(in, (moi_buffer *)(void *)(bytes + shape->first_view) + moi_below(in, (uint32_t)shape->n_views));
    } else if (how == 14) {
      static const int off[] = {-16, -8, -4, -1, 1, 8, 64};
      size_t size = moi_once_in(in, 3) ? moi_odd_number(in) : shape->size + (size_t)(ptrdiff_t)off[moi_below(in, 7)];
      memcpy(bytes, &size, sizeof size);
    } else if (how == 15) { /* refused, so never followed */
      uintptr_t next = moi_u32(in);
      memcpy(bytes + sizeof(size_t), &next, sizeof next);
    } else {
      size_t at = 16 + 4 * (moi_u8(in) % ((shape->size - 16) / 4));
      uint32_t value = moi_odd_number(in);
      int pointer = shape->n_views && at >= shape->first_view &&
                    at < shape->first_view + (size_t)shape->n_views * sizeof(moi_buffer);
      for (int i = 0; i < shape->n_pointers; i++) pointer |= at / 8 == shape->pointers[i] / 8;
      if (!pointer) memcpy(bytes + at, &value, 4);
    }
  }
}

/* ---- contexts */

static void backwards(void *user, uint32_t n, void (*body)(void *arg, uint32_t i), void *arg) {
  (void)user;
  while (n > 0) body(arg, --n);
}

moi_context *moi_any_context(moi_input *in, moi_context **other) {
#if defined(__aarch64__)
  static const char *const caps[] = {"", "cpu=scalar", "cpu=neon", "cpu=dotprod", "cpu=i8mm"};
#else
  static const char *const caps[] = {"", "cpu=scalar", "cpu=avx2", "cpu=avx512", "cpu=avx512vnni"};
#endif
  enum { N_CAPS = sizeof caps / sizeof *caps };
  static moi_context *contexts[N_CAPS][2];
  uint32_t c = moi_below(in, 10), cap = c / 2, workers = c % 2;
  for (uint32_t i = 0; i < 2; i++) {
    if (contexts[cap][i]) continue;
    moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
    desc.n_workers = i ? 5 : 1;
    if (i) desc.parallel_for = backwards;
    setenv("MOI_DEBUG", caps[cap], 1);
    MOI_EXPECT(!moi_context_create(&desc, &contexts[cap][i]), "no context: %s", moi_last_error());
  }
  if (other) *other = contexts[cap][!workers];
  return contexts[cap][workers];
}

const char *moi_any_kernel(moi_input *in) {
  uint32_t how = moi_below(in, 4);
  if (how < 2) return NULL;
  if (how == 2 && moi_once_in(in, 4)) return moi_once_in(in, 2) ? "" : "none-of-these";
  moi_kernel_info info = MOI_KERNEL_INFO_INIT;
  return moi_kernel_get(MOI_BACKEND_CPU, moi_u8(in), &info) ? "ref" : info.name;
}

moi_buffer moi_workspace(const moi_plan *plan) {
  size_t align = 1, size = moi_plan_workspace(plan, &align);
  if (!size) return moi_ptr(NULL, 0);
  MOI_EXPECT(align && !(align & (align - 1)) && align <= 4096, "workspace aligned to %zu", align);
  moi_buffer b = moi_ptr(moi_trap(size, align), size);
  moi_poison(b);
  return b;
}
