/* bench/checkpoint on files that want to do harm: each is an error with a text, or a checkpoint that can be read. */
#define _POSIX_C_SOURCE 200809L
#ifdef MOI_CHECKPOINTS_DIR

#include "tests/checkpoint.h"

#include <sys/stat.h>
#if defined(_WIN32)
#include <direct.h>
#include <io.h>
#include <process.h>
#else
#include <unistd.h>
#endif

/* ----------------------------------------------------------------------------------------------------- hostile GGUF */

typedef struct built {
  uint8_t data[8192];
  size_t size;
} built;

static void put(built *b, const void *data, size_t size) {
  assert_true(b->size + size <= sizeof b->data);
  memcpy(b->data + b->size, data, size);
  b->size += size;
}
static void put_number(built *b, uint64_t v, size_t size) {
  for (size_t i = 0; i < size; i++) put(b, &(uint8_t){i < 8 ? (uint8_t)(v >> (8 * i)) : 0}, 1);
}
static void put_text(built *b, const char *text) {
  put_number(b, strlen(text), 8);
  put(b, text, strlen(text));
}
static built gguf_start(uint32_t version, uint64_t n_tensors, uint64_t n_metadata) {
  built b = {{0}, 0};
  put(&b, "GGUF", 4);
  put_number(&b, version, 4);
  put_number(&b, n_tensors, 8);
  put_number(&b, n_metadata, 8);
  return b;
}
static void put_u32(built *b, const char *key, uint32_t value) {
  put_text(b, key);
  put_number(b, 4, 4);
  put_number(b, value, 4);
}
static void put_tensor(built *b, const char *name, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset) {
  put_text(b, name);
  put_number(b, 2, 4);
  put_number(b, d0, 8);
  put_number(b, d1, 8);
  put_number(b, type, 4);
  put_number(b, offset, 8);
}
static void put_data(built *b, size_t size) {
  while (b->size % 32) put_number(b, 0, 1);
  for (size_t i = 0; i < size; i++) put_number(b, i, 1);
}
static void refuses_gguf(const built *b, const char *because) {
  write_all("x.gguf", b->data, b->size);
  refuses("x.gguf", because);
}
static void accepts_gguf(const built *b, uint64_t n_tensors) {
  write_all("x.gguf", b->data, b->size);
  moi_checkpoint *c = accepts("x.gguf");
  assert_int_equal(moi_checkpoint_count(c), n_tensors);
  touch_tensors(c, b->size);
  moi_checkpoint_close(c);
}

static void test_gguf_header(void **state) {
  (void)state;
  moi_load_error error;
  assert_null(moi_checkpoint_open(NULL, &error));
  assert_null(moi_checkpoint_open("/no/such/file.gguf", NULL));
  refuses("none.gguf", "No such file");
  write_all("x.gguf", "", 0);
  refuses("x.gguf", "is empty");
  write_all("x.gguf", "GGML\1\0\0\0", 8);
  refuses("x.gguf", "no magic");

  built b = gguf_start(3, 0, 0);
  accepts_gguf(&b, 0);
  b = gguf_start(1, 0, 0);
  refuses_gguf(&b, "version 1");
  b = gguf_start(0x03000000, 0, 0);
  refuses_gguf(&b, "big-endian");
  b = gguf_start(3, 0, UINT64_MAX);
  refuses_gguf(&b, "do not fit");
  b = gguf_start(3, UINT64_MAX / 8, 0);
  refuses_gguf(&b, "do not fit");
  b = gguf_start(3, 0, 2);
  put_u32(&b, "a", 1);
  put_data(&b, 0);
  put_u32(&b, "a", 1);
  refuses_gguf(&b, "bytes"); /* padding read as a key of 0 bytes */
  b = gguf_start(3, 0, 2);
  put_u32(&b, "a", 1);
  put_u32(&b, "a", 2);
  refuses_gguf(&b, "twice");
}

static void test_gguf_metadata(void **state) {
  (void)state;
  built b = gguf_start(3, 0, 1);
  put_number(&b, 3, 8);
  put(&b, "a\0b", 3);
  put_number(&b, 0, 4);
  put_number(&b, 0, 9);
  refuses_gguf(&b, "zero byte");
  b = gguf_start(3, 0, 1);
  put_number(&b, UINT64_MAX - 3, 8);
  put_number(&b, 0, 16);
  refuses_gguf(&b, "ends in the middle");
  b = gguf_start(3, 0, 1);
  put_text(&b, "key");
  put_number(&b, 13, 4);
  put_number(&b, 0, 8);
  refuses_gguf(&b, "unknown type 13");
  b = gguf_start(3, 0, 1); /* a string of 2^64-1 bytes */
  put_text(&b, "key");
  put_number(&b, 8, 4);
  put_number(&b, UINT64_MAX, 8);
  refuses_gguf(&b, "ends in the middle");
  b = gguf_start(3, 0, 1); /* count * 8 wraps to 8 */
  put_text(&b, "key");
  put_number(&b, 9, 4);
  put_number(&b, 10, 4);
  put_number(&b, (UINT64_C(1) << 61) + 1, 8);
  put_number(&b, 0, 8);
  refuses_gguf(&b, "metadata array of");
  b = gguf_start(3, 0, 1); /* 2^60 strings */
  put_text(&b, "key");
  put_number(&b, 9, 4);
  put_number(&b, 8, 4);
  put_number(&b, UINT64_C(1) << 60, 8);
  put_number(&b, 0, 64);
  refuses_gguf(&b, "ends in the middle");

  for (int depth = 1; depth <= 9; depth++) { /* arrays in arrays: the last of one u8 */
    b = gguf_start(3, 0, 2);
    put_text(&b, "nested");
    put_number(&b, 9, 4);
    for (int i = 1; i < depth; i++) {
      put_number(&b, 9, 4);
      put_number(&b, 1, 8);
    }
    put_number(&b, 0, 4);
    put_number(&b, 1, 8);
    put_number(&b, 7, 1);
    put_u32(&b, "after", 42);
    if (depth == 9) refuses_gguf(&b, "nested deeper");
    else {
      accepts_gguf(&b, 0);
      moi_checkpoint *c = accepts("x.gguf");
      double v;
      assert_true(moi_checkpoint_number(c, "after", 0, &v) && v == 42);
      assert_true(moi_checkpoint_number(c, "nested", 0, &v) == (depth == 1));
      moi_checkpoint_close(c);
    }
  }
  static const uint32_t alignments[] = {0, 3, 48, 1u << 21, 0xffffffff};
  for (int i = 0; i < 5; i++) {
    b = gguf_start(3, 0, 1);
    put_u32(&b, "general.alignment", alignments[i]);
    refuses_gguf(&b, "general.alignment");
  }
  b = gguf_start(3, 1, 1);
  put_u32(&b, "general.alignment", 4096);
  put_tensor(&b, "t", 4, 1, 0, 0);
  while (b.size < 4096) put_number(&b, 0, 1);
  put_number(&b, 0, 16);
  accepts_gguf(&b, 1);
}

static void test_gguf_tensors(void **state) {
  (void)state;
  built b = gguf_start(2, 2, 0);
  put_tensor(&b, "a", 8, 2, 0, 0);
  put_tensor(&b, "b", 32, 1, 8, 64);
  put_data(&b, 64 + 34);
  accepts_gguf(&b, 2);
  b.size--;
  refuses_gguf(&b, "not in the file");

  static const struct {
    uint64_t d0, d1;
    uint32_t type;
    uint64_t offset;
    const char *because;
  } bad[] = {
      {8, 2, 0, 32, "not in the file"},
      {8, 2, 0, UINT64_MAX - 31, "not in the file"},
      {8, 2, 0, 4, "not a multiple of 32"},
      {UINT64_C(1) << 40, UINT64_C(1) << 40, 0, 0, "overflow"},
      {UINT64_C(1) << 62, 1, 0, 0, "overflow"}, /* the count fits, 4 bytes each do not */
      {UINT64_C(1) << 31, UINT64_C(1) << 31, 0, 0, "overflow"},
      {UINT64_MAX, 1, 24, 0, "overflow"},
      {UINT64_C(1) << 32, 1, 0, 0, "not in the file"},
      {31, 1, 8, 0, "whole blocks"},
      {128, 1, 12, 0, "whole blocks"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    b = gguf_start(3, 1, 0);
    put_tensor(&b, "t", bad[i].d0, bad[i].d1, bad[i].type, bad[i].offset);
    put_data(&b, 64);
    refuses_gguf(&b, bad[i].because);
  }
  b = gguf_start(3, 1, 0);
  put_tensor(&b, "t", 3, 5, 77, 0); /* unknown: listed, without bytes */
  put_data(&b, 64);
  accepts_gguf(&b, 1);
  moi_checkpoint *c = accepts("x.gguf");
  const moi_tensor *t = moi_checkpoint_find(c, "t");
  assert_string_equal(t->type, "type 77");
  assert_int_equal(t->format, MOI_FORMAT_NONE);
  assert_null(t->data);
  assert_int_equal(t->dims[0], 5);
  assert_int_equal(t->dims[1], 3);
  moi_checkpoint_close(c);

  b = gguf_start(3, 1, 0);
  put_tensor(&b, "empty", 0, 5, 0, 0);
  accepts_gguf(&b, 1);
  b = gguf_start(3, 2, 0);
  put_tensor(&b, "t", 8, 1, 0, 0);
  put_tensor(&b, "t", 8, 1, 0, 32);
  put_data(&b, 64);
  refuses_gguf(&b, "twice");
  b = gguf_start(3, 2, 0);
  put_tensor(&b, "s", 8, 2, 0, 0);
  put_tensor(&b, "t", 8, 1, 0, 32);
  put_data(&b, 64);
  refuses_gguf(&b, "share bytes");
  static const uint32_t dims[] = {0, 5, 0xffffffff};
  for (int i = 0; i < 3; i++) {
    b = gguf_start(3, 1, 0);
    put_text(&b, "t");
    put_number(&b, dims[i], 4);
    put_number(&b, 1, 60);
    refuses_gguf(&b, "dimensions");
  }
  b = gguf_start(3, 1, 0);
  put_number(&b, 65536, 8);
  put_number(&b, 0, 40);
  refuses_gguf(&b, "ends in the middle");
  b = gguf_start(3, 1, 0); /* an escape sequence does not reach the terminal */
  put_tensor(&b, "\x1b[31m", 31, 1, 8, 0);
  refuses_gguf(&b, "?[31m");
}

static void test_gguf_shards(void **state) {
  (void)state;
  for (uint32_t shard = 1; shard <= 2; shard++) {
    built b = gguf_start(3, 1, 3);
    put_u32(&b, "split.count", 2);
    put_u32(&b, "split.no", shard - 1);
    put_u32(&b, "which", shard);
    put_tensor(&b, shard == 1 ? "first" : "second", 8, 1, 0, 0);
    put_data(&b, 32);
    char name[64];
    snprintf(name, sizeof name, "split-%05u-of-00002.gguf", shard);
    write_all(name, b.data, b.size);
    if (shard == 1) write_all("alone.gguf", b.data, b.size);
    if (shard == 1) write_all("three-00001-of-00003.gguf", b.data, b.size);
  }
  for (uint32_t shard = 1; shard <= 2; shard++) {
    char name[64];
    snprintf(name, sizeof name, "split-%05u-of-00002.gguf", shard);
    moi_checkpoint *c = accepts(name);
    double v;
    assert_int_equal(moi_checkpoint_count(c), 2);
    assert_non_null(moi_checkpoint_find(c, "first")->data);
    assert_non_null(moi_checkpoint_find(c, "second")->data);
    assert_true(moi_checkpoint_number(c, "which", 0, &v) && v == 1); /* the first shard's metadata */
    moi_checkpoint_close(c);
  }
  refuses("alone.gguf", "one of 2 shards");
  refuses("three-00001-of-00003.gguf", "split.count: is 2");
  write_all("lost-00001-of-00002.gguf", "GGUF", 4);
  refuses("lost-00001-of-00002.gguf", "ends in the middle");
}

/* ---------------------------------------------------------------------------------------------- hostile safetensors */

static void write_safetensors(const char *name, const char *header, uint64_t length, size_t data) {
  size_t size = 8 + strlen(header) + data;
  uint8_t *bytes = calloc(1, size);
  assert_non_null(bytes);
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
  memcpy(bytes + 8, header, strlen(header));
  write_all(name, bytes, size);
  free(bytes);
}

static void test_safetensors_header(void **state) {
  (void)state;
#define ONE(type, shape, offsets)                                                                                      \
  "{\"__metadata__\":{\"format\":\"pt\"},\"t\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets  \
  "}}"
  static const struct {
    const char *header, *because; /* NULL: accepted */
  } cases[] = {
      {ONE("F32", "[4,4]", "[0,64]"), NULL},
      {ONE("F32", "[]", "[60,64]"), NULL},
      {ONE("F32", "[0,5]", "[0,0]"), NULL},
      {ONE("F4", "[2,64]", "[0,64]"), NULL},
      {ONE("QUUX", "[3]", "[0,64]"), NULL},
      {"{}", NULL},
      {ONE("F32", "[4,4]", "[0,68]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[64,0]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[-64,0]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[0,1e300]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[0,63.5]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[0,64,64]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[0]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[\"0\",64]"), "data_offsets"},
      {ONE("F32", "[4,4]", "[18446744073709551552,18446744073709551616]"), "data_offsets"},
      {ONE("F32", "[4,3]", "[0,64]"), "not 12 elements"},
      {ONE("F4", "[3]", "[0,1]"), "not 3 elements"},
      {ONE("F32", "[-4,-4]", "[0,64]"), "shape"},
      {ONE("F32", "[1,1,1,1,1,1,1,1,16]", "[0,64]"), "shape"},
      {ONE("F32", "[4294967296,4294967296]", "[0,0]"), "overflows"},
      {ONE("F32", "[4611686018427387904]", "[0,0]"), "shape"},
      {ONE("F32", "[4503599627370496,2048]", "[0,0]"), "elements"},
      {ONE("F32", "{}", "[0,64]"), "lacks"},
      {"{\"t\":{\"dtype\":\"F32\",\"shape\":[16]}}", "lacks"},
      {"{\"t\":{\"dtype\":7,\"shape\":[16],\"data_offsets\":[0,64]}}", "lacks"},
      {"{\"t\":[1]}", "lacks"},
      {"{\"\":{\"dtype\":\"F32\",\"shape\":[16],\"data_offsets\":[0,64]}}", "without a name"},
      {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
       "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
       "twice"},
      {"{\"t\\u0000a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
       "\"t\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
       ""},
      {"{\"s\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
       "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
       "share bytes"},
      {"[1]", "no JSON object"},
      {"{\"t\":", "no JSON object"},
      {"", "no JSON object"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    write_safetensors("x.safetensors", cases[i].header, strlen(cases[i].header), 64);
    if (cases[i].because) refuses("x.safetensors", cases[i].because);
    else {
      moi_checkpoint *c = accepts("x.safetensors");
      touch_tensors(c, 64);
      moi_checkpoint_close(c);
    }
  }
  static const uint64_t lengths[] = {3, 67, 1000, 100000001, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 7};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    write_safetensors("x.safetensors", "{}", lengths[i], 64);
    refuses("x.safetensors", lengths[i] > 66 ? "a header of" : "no JSON object"); /* "{}" and a zero */
  }
  write_all("x.safetensors", "\2\0\0", 3);
  refuses("x.safetensors", "shorter");
  size_t deep = 200000;
  char *nested = malloc(deep + 1);
  assert_non_null(nested);
  memset(nested, '[', deep);
  memcpy(nested, "{\"a\":", 5);
  nested[deep] = 0;
  write_safetensors("x.safetensors", nested, deep, 0);
  refuses("x.safetensors", "no JSON object");
  free(nested);
#undef ONE
}

static void make_folder(const char *name) {
  char path[512];
  inside(path, name);
#if defined(_WIN32)
  assert_true(_mkdir(path) == 0 || _access(path, 0) == 0);
#else
  assert_true(mkdir(path, 0700) == 0 || access(path, F_OK) == 0);
#endif
}

static void test_safetensors_index(void **state) {
  (void)state;
  make_folder("empty");
  refuses("empty", "holds neither");
  make_folder("index");
  const char *tensor = "{\"t\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}";
  write_safetensors("index/a.safetensors", tensor, strlen(tensor), 16);
  static const struct {
    const char *index, *because;
  } cases[] = {
      {"{\"weight_map\":{\"t\":\"a.safetensors\",\"u\":\"a.safetensors\"}}", NULL},
      {"{\"weight_map\":{\"t\":\"../x.safetensors\"}}", "not a plain name"},
      {"{\"weight_map\":{\"t\":\"/etc/passwd\"}}", "not a plain name"},
      {"{\"weight_map\":{\"t\":\"..\"}}", "not a plain name"},
      {"{\"weight_map\":{\"t\":\"\"}}", "not a plain name"},
      {"{\"weight_map\":{\"t\":3}}", "not a plain name"},
      {"{\"weight_map\":{\"t\":\"gone.safetensors\"}}", "No such file"},
      {"{\"weight_map\":{\"t\":\"model.safetensors.index.json\"}}", "header"},
      {"{\"weight_map\":[]}", "no weight_map"},
      {"{}", "no weight_map"},
      {"nonsense", "no JSON object"},
      {"{\"weight_map\":{}}", NULL},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    write_all("index/model.safetensors.index.json", cases[i].index, strlen(cases[i].index));
    if (cases[i].because) refuses("index", cases[i].because);
    else moi_checkpoint_close(accepts("index/"));
  }
  write_all("index/config.json", "{\"model_type\":", 14);
  refuses("index", "config.json: is no JSON object");
}

/* -------------------------------------------------------------------------------------------------- layers that lie */

/* A sample with every `from` in one of its files replaced by `to`, of the same length. */
static void damaged(const char *name, const char *file, const char *from, const char *to) {
  static const char *const files[] = {"config.json", "model.safetensors"};
  make_folder("layer");
  for (int i = 0; i < 2; i++) {
    char path[512], target[64];
    snprintf(path, sizeof path, "%s/%s/%s", MOI_CHECKPOINTS_DIR, name, files[i]);
    snprintf(target, sizeof target, "layer/%s", files[i]);
    size_t size, length = strlen(from);
    uint8_t *bytes = read_all(path, &size);
    if (!strcmp(file, files[i])) {
      int found = 0;
      assert_int_equal(length, strlen(to));
      for (size_t at = 0; at + length <= size; at++)
        if (!memcmp(bytes + at, from, length)) memcpy(bytes + at, to, length), found++;
      assert_true(found > 0);
    }
    write_all(target, bytes, size);
    free(bytes);
  }
}

static void test_layer_errors(void **state) {
  (void)state;
  moi_checkpoint *c = open_sample("types.gguf");
  moi_layer l;
  moi_load_error error;
  assert_false(moi_layer_open(c, 0, &l, &error));
  assert_non_null(strstr(error.text, "no router"));
  assert_false(moi_layer_open(c, UINT32_MAX, &l, NULL));
  moi_checkpoint_close(c);

  static const struct {
    const char *name, *file, *from, *to;
    uint32_t layer;
    const char *because;
  } cases[] = {
      {"deepseek_v3", "config.json", "\"deepseek_v3\"", "\"deepsink_v3\"", 3, "rules.def"},
      {"deepseek_v3", "config.json", "\"model_type\"", "\"model_tupe\"", 3, "model_type"},
      {"deepseek_v3", "config.json", "\"silu\"", "\"gelu\"", 3, "hidden_act"},
      {"deepseek_v3", "config.json", "\"sigmoid\"", "\"sigmold\"", 3, "scoring_func"},
      {"deepseek_v3", "config.json", "\"n_group\": 2", "\"n_group\": 3", 3, "groups"},
      {"deepseek_v3", "config.json", "\"n_group\": 2", "\"n_group\":-2", 3, "n_group"},
      {"deepseek_v3", "config.json", "\"topk_group\": 1", "\"topk_group\": 9", 3, "groups"},
      {"deepseek_v3", "config.json", "\"n_routed_experts\": 4", "\"n_routed_experts\": 8", 3, "no router of 8"},
      {"deepseek_v3", "config.json", "\"n_routed_experts\": 4", "\"n_routed_experts\":-4", 3, "n_routed_experts"},
      {"deepseek_v3", "config.json", "\"n_routed_experts\"", "\"n_rooted_experts\"", 3, "how many experts"},
      {"deepseek_v3", "config.json", "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9", 3, "9 experts"},
      {"deepseek_v3", "config.json", "  128,", "   64,", 3, "weight_block_size"},
      {"deepseek_v3", "config.json", "\"deepseek_v3\"", "\"deepseek_v3\"", 4, "no router"},
      {"deepseek_v3", "model.safetensors", ".experts.2.up_proj.weight\"", ".experts.9.up_proj.weight\"", 3, "missing"},
      {"deepseek_v3", "model.safetensors", ".weight_scale_inv", ".weight_scale_inw", 3, "weight_scale_inv"},
      {"deepseek_v3", "model.safetensors", "shared_experts", "sharet_experts", 3, "shared experts"},
      {"qwen3_5_moe", "model.safetensors", "shared_expert_gate", "shared_expert_gait", 7, "gate of the shared"},
      {"gpt_oss", "config.json", "\"gpt_oss\"", "\"mixtral\"", 0, "per_tok"},
      {"gpt_oss", "model.safetensors", "down_proj_bias", "down_proj_bios", 0, "not all"},
      {"gpt_oss", "model.safetensors", "down_proj_scales", "down_proj_scalps", 0, "no u8 scales"},
      {"kimi_int4", "config.json", "\"num_bits\": 4", "\"num_bits\": 8", 1, "4 bits"},
      {"kimi_int4", "config.json", "\"symmetric\": true", "\"symmetric\":false", 1, "zero points"},
      {"gptq", "config.json", "\"gptq\"", "\"gptx\"", 0, "neither gptq nor awq"},
      {"gptq", "config.json", "\"bits\": 4", "\"bits\": 3", 0, "4 bits"},
      {"gptq", "config.json", "\"gptq\"", "\"awq\" ", 0, "fit"},
      {"nvfp4", "model.safetensors", "weight_scale_2", "weight_scale_3", 0, "global scale"},
      {"llama4", "model.safetensors", "experts.down_proj", "experts.dawn_proj", 1, "missing"},
      {"deepseek_v4", "model.safetensors", "F8_E8M0", "F8_E5M2", 0, "that no format"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (!strcmp(cases[i].because, "per_tok")) continue;
    damaged(cases[i].name, cases[i].file, cases[i].from, cases[i].to);
    layer_refuses("layer", cases[i].layer, cases[i].because);
  }

  /* act-order: the groups of two columns exchanged */
  damaged("gptq", "config.json", "\"gptq\"", "\"gptq\"");
  c = accepts("layer");
  const moi_tensor *order = moi_checkpoint_find(c, "model.layers.0.block_sparse_moe.experts.1.w2.g_idx");
  const moi_tensor *all = moi_checkpoint_tensor(c, 0);
  assert_non_null(order);
  const uint8_t *first = all->data;
  for (uint64_t i = 0; i < moi_checkpoint_count(c); i++)
    if (moi_checkpoint_tensor(c, i)->data < first) first = moi_checkpoint_tensor(c, i)->data;
  char path[512];
  inside(path, "layer/model.safetensors");
  size_t size;
  uint8_t *bytes = read_all(path, &size);
  uint64_t header = 0;
  memcpy(&header, bytes, 8);
  bytes[8 + header + (uint64_t)(order->data - first)] ^= 1;
  moi_checkpoint_close(c);
  write_all("layer/model.safetensors", bytes, size);
  free(bytes);
  layer_refuses("layer", 0, "act-order");

  c = open_sample("gpt_oss/model.safetensors"); /* a shard's own path finds config.json too */
  l = open_layer(c, 0);
  moi_layer_close(&l);
  moi_layer_close(&l);
  moi_layer_close(NULL);
  moi_checkpoint_close(c);
  moi_checkpoint_close(NULL);
}

/* ----------------------------------------------------------------------------------------------------------- damage */

static uint64_t random_state = 0x9e3779b97f4a7c15u;
static uint32_t next_random(uint32_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 32) % bound;
}

static const struct {
  const char *sample, *copy;
  uint32_t layer;
} victims[] = {{"types.gguf", "v.gguf", 0},
               {"gpt-oss.gguf", "v.gguf", 0},
               {"qwen3moe.gguf", "v.gguf", 1},
               {"deepseek2.gguf", "v.gguf", 0},
               {"gpt_oss/model.safetensors", "gpt_oss/model.safetensors", 0},
               {"gptq/model.safetensors", "gptq/model.safetensors", 0},
               {"kimi_int4/model.safetensors", "kimi_int4/model.safetensors", 1},
               {"nvfp4/model.safetensors", "nvfp4/model.safetensors", 0},
               {"llama4/model.safetensors", "llama4/model.safetensors", 1},
               {"deepseek_v4/config.json", "deepseek_v4/config.json", 0}};
enum { N_VICTIMS = sizeof victims / sizeof *victims };

/* The victim's folder, with config.json beside a safetensors file and the other way round. Returns what to open. */
static void prepare(int i, char to_open[512]) {
  static const char *const files[] = {"config.json", "model.safetensors"};
  const char *slash = strchr(victims[i].sample, '/');
  snprintf(to_open, 512, "%s", victims[i].copy);
  if (!slash) return;
  to_open[slash - victims[i].sample] = 0;
  make_folder(to_open);
  for (int f = 0; f < 2; f++) {
    char path[1024], target[1024];
    snprintf(path, sizeof path, "%s/%s/%s", MOI_CHECKPOINTS_DIR, to_open, files[f]);
    snprintf(target, sizeof target, "%s/%s", to_open, files[f]);
    size_t size;
    uint8_t *bytes = read_all(path, &size);
    write_all(target, bytes, size);
    free(bytes);
  }
}

static void test_truncation(void **state) {
  (void)state;
  for (int i = 0; i < N_VICTIMS; i++) {
    char path[512], to_open[512];
    prepare(i, to_open);
    sample(path, victims[i].sample);
    size_t size;
    uint8_t *bytes = read_all(path, &size);
    opened = layers_opened = 0;
    /* every length of the headers of a few, then at random */
    for (size_t length = 0; length < size; length += i % 4 == 0 && length < 4096 ? 1 : 1 + next_random(512)) {
      write_all(victims[i].copy, bytes, length);
      survives(to_open, 0, victims[i].layer);
    }
    /* no shorter file holds the whole layer, but for a config.json without its last line feed */
    bool is_config = strstr(victims[i].sample, "config") != NULL;
    assert_true(layers_opened <= is_config);
    opened = layers_opened = 0;
    write_all(victims[i].copy, bytes, size);
    survives(to_open, 0, victims[i].layer);
    assert_int_equal(opened, 1);
    assert_int_equal(layers_opened, i > 0); /* the first has tensors of all types, but no layer */
    free(bytes);
  }
}

static void test_flips(void **state) {
  (void)state;
  for (int i = 0; i < N_VICTIMS; i++) {
    char path[512], to_open[512];
    prepare(i, to_open);
    sample(path, victims[i].sample);
    size_t size;
    uint8_t *bytes = read_all(path, &size);
    opened = layers_opened = 0;
    uint32_t header = size < 3000 ? (uint32_t)size : 3000; /* what follows is data, of any value */
    for (int round = 0; round < 20000 / N_VICTIMS; round++) {
      size_t at[4];
      uint8_t before[4];
      uint32_t flips = 1 + next_random(4);
      for (uint32_t f = 0; f < flips; f++) {
        at[f] = next_random(header);
        before[f] = bytes[at[f]];
        uint32_t how = next_random(4);
        bytes[at[f]] = how == 0   ? 0xff
                       : how == 1 ? (uint8_t)(before[f] ^ (1u << next_random(8)))
                       : how == 2 ? (uint8_t)next_random(256)
                                  : (uint8_t) "0123456789-.eE{}[]\",:"[next_random(21)];
      }
      write_all(victims[i].copy, bytes, size);
      survives(to_open, 0, victims[i].layer);
      for (uint32_t f = flips; f-- > 0;) bytes[at[f]] = before[f];
    }
    assert_true(opened > 0);
    free(bytes);
  }
}

static int remove_tree(void **state) {
  (void)state;
  char command[300];
#if defined(_WIN32)
  snprintf(command, sizeof command, "rmdir /s /q \"%s\"", folder);
#else
  snprintf(command, sizeof command, "rm -r '%s'", folder);
#endif
  return system(command);
}

static int make_tree(void **state) {
  (void)state;
#if defined(_WIN32)
  const char *base = getenv("TEMP");
  snprintf(folder, sizeof folder, "%s\\moi-checkpoint-%d", base && strlen(base) < 200 ? base : ".", _getpid());
  return _mkdir(folder);
#else
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/moi-checkpoint-XXXXXX", base && strlen(base) < 200 ? base : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
#endif
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_gguf_header),
      cmocka_unit_test(test_gguf_metadata),
      cmocka_unit_test(test_gguf_tensors),
      cmocka_unit_test(test_gguf_shards),
      cmocka_unit_test(test_safetensors_header),
      cmocka_unit_test(test_safetensors_index),
      cmocka_unit_test(test_layer_errors),
      cmocka_unit_test(test_truncation),
      cmocka_unit_test(test_flips),
  };
  return cmocka_run_group_tests(tests, make_tree, remove_tree);
}

#else

#include <stdio.h>

int main(void) {
  fprintf(stderr, "built without MOI_CHECKPOINTS_DIR: there is nothing to check\n");
  return 1;
}

#endif
