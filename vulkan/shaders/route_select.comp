#version 460
/* Selection of a token's experts from its logits: the steps of moi_route_desc's comment, for every model's rule. One
 * workgroup for each token, a single subgroup where the device gives one of that size: then no barrier is executed.
 *
 * Values are held as keys, uints in the values' order; 0, below all of them, is a class that cannot be chosen. Class i
 * is the invocation i % size's, which remembers the best of its own: a round of the arg max reduces those, and only the
 * winner's classes are looked through again.
 *
 * llvmpipe ends every loop after 65535 iterations, counted over all loops of an invocation: no invocation selects for
 * two tokens, and no step is quadratic in what can be large. */
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#define MOI_COHERENT coherent
#define MOI_READABLE push.ids
#include "common.glsl"

layout(local_size_x_id = 0) in;                     /* a power of two, 4 to 128 */
layout(constant_id = 1) const uint CLASSES = 1024u; /* bound of n_class; 1: none, keys lie in the workspace */
layout(constant_id = 2) const uint GROUPS = 1024u;  /* bound of n_group; 1: no groups */
/* rules_of of route.c: constants, because llvmpipe executes both sides of every branch */
layout(constant_id = 3) const uint RULES = 0u;
layout(constant_id = 4) const bool ONE_SUBGROUP = false; /* a workgroup is known to be one */

/* select_push of route.c */
layout(push_constant) uniform Push {
  uvec2 n_tokens_device, input_, router_bias;
  uvec2 select_bias;     /* HASH: the table */
  uvec2 select_bias_alt; /* HASH: the token ids */
  uvec2 alt_mask, expert_scale, ids, weights, logits_out, scratch;
  uint top_k, n_class;
  uint groups; /* n_group | topk_group << 16 */
  uint n_tokens, stride;
  uint vocab; /* SPARSEMIXER: bits of 2 * jitter */
  float renorm_eps, scale, logit_scale, softcap;
} push;

const uint SCORE = RULES & 7u, RENORM = (RULES >> 3) & 3u, GROUP_SCORE = (RULES >> 5) & 1u, FLAGS = (RULES >> 6) & 63u;
const uint INPUT_TYPE = (RULES >> 12) & 3u, ROUTER_TYPE = (RULES >> 14) & 3u, LOGITS_TYPE = (RULES >> 16) & 3u,
           WEIGHT_TYPE = (RULES >> 18) & 3u;
const bool SOFTCAP = (RULES >> 20) != 0u;

const uint SOFTMAX = 0u, SIGMOID = 1u, SQRT_SOFTPLUS = 2u, TOPK_SOFTMAX = 3u, TOPK_SIGMOID = 4u, SPARSEMIXER = 5u;
const uint TOP2_SUM = 0u;
const uint RENORM_NONE = 0u, RENORM_SUM = 1u;
const bool BIAS = (FLAGS & 1u) != 0u, SELECT_BIAS = (FLAGS & 2u) != 0u, SELECT_BIAS_ALT = (FLAGS & 4u) != 0u,
           EXPERT_SCALE = (FLAGS & 8u) != 0u, HASH = (FLAGS & 32u) != 0u;
#define AFTER_TOPK (SCORE == TOPK_SOFTMAX || SCORE == TOPK_SIGMOID)
/* Every score is monotone in the logit: where nothing is added to it the logits themselves are compared. */
#define SCORED (SELECT_BIAS || (GROUPS > 1u && GROUP_SCORE == TOP2_SUM))

shared uint class_keys[CLASSES];   /* of the values that are compared; 0 once chosen */
shared uint class_logits[CLASSES]; /* keys of the logits, where those are others */
shared uint group_keys[GROUPS];
shared uint cut_key, cut_group; /* the last group that stays */
shared int slot_id[64];
shared uint slot_logit[64]; /* key */
shared float slot_weight[64];
shared uint part_key[128], part_at[128]; /* one for each subgroup */

const uint NONE = 0xffffffffu;

/* NaN and -infinity: 0; both zeros: the same. */
uint key_of(float f) {
  uint u = floatBitsToUint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u || u == 0xff800000u) return 0u;
  if (u == 0x80000000u) u = 0u;
  return (u & 0x80000000u) != 0u ? ~u : u | 0x80000000u;
}
float value_of(uint key) {
  if (key == 0u) return -MOI_INFINITY;
  return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

/* ---- memory that all invocations of the workgroup see */

bool single() { return ONE_SUBGROUP || gl_NumSubgroups == 1u; }

void sync() {
  if (single()) {
    subgroupBarrier();
  } else {
    groupMemoryBarrier();
    barrier();
  }
}

uint token() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

uvec2 scratch_at(uint row) { return moi_add(push.scratch, moi_mul(moi_mul(4u, push.n_class), 2u * token() + row)); }
uint key_at(uint i) { return CLASSES > 1u ? class_keys[i] : SEEN(scratch_at(0u), i); }
void set_key(uint i, uint key) {
  if (CLASSES > 1u) class_keys[i] = key;
  else SEEN(scratch_at(0u), i) = key;
}
uint logit_at(uint i) { return CLASSES > 1u ? class_logits[i] : SEEN(scratch_at(1u), i); }
void set_logit(uint i, uint key) {
  if (CLASSES > 1u) class_logits[i] = key;
  else SEEN(scratch_at(1u), i) = key;
}

/* ---- reductions over the workgroup; every invocation gets the result */

void share(uint key, uint at) {
  barrier(); /* the last reduction's parts have been read */
  if (subgroupElect()) {
    part_key[gl_SubgroupID] = key;
    part_at[gl_SubgroupID] = at;
  }
  memoryBarrierShared();
  barrier();
}
/* the largest key, of equal ones the one with the lowest `at` */
void arg_max(inout uint key, inout uint at) {
  uint top = subgroupMax(key);
  at = subgroupMin(key == top ? at : NONE);
  key = top;
  if (single()) return;
  share(key, at);
  for (uint s = 0u; s < gl_NumSubgroups; s++) {
    if (part_key[s] < key || (part_key[s] == key && part_at[s] >= at)) continue;
    key = part_key[s];
    at = part_at[s];
  }
}
uint max_of_all(uint key) {
  key = subgroupMax(key);
  if (single()) return key;
  share(key, 0u);
  for (uint s = 0u; s < gl_NumSubgroups; s++) key = max(key, part_key[s]);
  return key;
}
float sum_of_all(float x) {
  x = subgroupAdd(x);
  if (single()) return x;
  share(floatBitsToUint(x), 0u);
  x = uintBitsToFloat(part_key[0]);
  for (uint s = 1u; s < gl_NumSubgroups; s++) x += uintBitsToFloat(part_key[s]);
  return x;
}

/* ---- scores */

float exp_to_zero(float x) { return x < -87.0 ? 0.0 : moi_exp(x); }

/* sqrt(log(1 + exp(l))); beyond 20 log(1 + exp(l)) is l in fp32 */
float sqrt_softplus(float l) {
  if (l > 20.0) return sqrt(l);
  if (l < -20.0) return moi_exp(0.5 * l); /* log(1 + x) is x, whose root is known */
  float x = moi_exp(l);
  if (x > 0.375) return sqrt(moi_log(1.0 + x));
  float s = x / (2.0 + x), z = s * s; /* log(1 + x) = 2 artanh(s), without the rounding of 1 + x */
  float t = 2.0 / 13.0;
  t = t * z + 2.0 / 11.0;
  t = t * z + 2.0 / 9.0;
  t = t * z + 2.0 / 7.0;
  t = t * z + 2.0 / 5.0;
  t = t * z + 2.0 / 3.0;
  return sqrt(2.0 * s + s * z * t);
}

/* top, inverse: of SOFTMAX, the largest logit and one over the sum */
float score_of(float l, float top, float inverse) {
  switch (SCORE) {
    case SOFTMAX: return exp_to_zero(l - top) * inverse;
    case SIGMOID:
    case TOPK_SIGMOID: return moi_sigmoid(l);
    case SQRT_SOFTPLUS: return sqrt_softplus(l);
    default: return exp_to_zero(l - top); /* TOPK_SOFTMAX, whose sum comes after */
  }
}

/* step 1 */
float logit_of(uvec2 row, uint i) {
  float l = moi_load(INPUT_TYPE, row, i);
  if (BIAS) l += moi_load(ROUTER_TYPE, push.router_bias, i);
  l = moi_round_to(LOGITS_TYPE, l) * push.logit_scale;
  return SOFTCAP && !moi_is_nan(l) ? push.softcap * moi_tanh(l / push.softcap) : l;
}

/* One over softmax's sum: the weight of the class `top`, of those that remain within 2 * jitter of it. */
float sparse_weight(float top) {
  float limit = uintBitsToFloat(push.vocab), sum = 0.0;
  for (uint i = gl_LocalInvocationID.x; i < push.n_class; i += gl_WorkGroupSize.x) {
    uint key = key_at(i);
    if (key == 0u) continue;
    float l = value_of(key), factor = max(abs(l), top);
    if (!(factor > 0.0 && (top - l) / factor > limit)) sum += exp_to_zero(l - top);
  }
  return 1.0 / sum_of_all(sum);
}

/* Removes all but the best groups; every invocation's keys are seen by all when it begins. */
void limit_groups() {
  uint n_group = push.groups & 65535u, keep = push.groups >> 16, size = push.n_class / n_group;
  for (uint g = gl_LocalInvocationID.x; g < n_group; g += gl_WorkGroupSize.x) {
    uint first = 0u, second = 0u, at = g % size; /* begins elsewhere in each group: other banks of shared memory */
    for (uint i = 0u; i < size; i++) {
      uint key = key_at(g * size + at);
      if (++at == size) at = 0u;
      second = max(second, min(first, key));
      first = max(first, key);
    }
    group_keys[g] = GROUP_SCORE == TOP2_SUM && second != 0u ? key_of(value_of(first) + value_of(second)) : first;
  }
  sync();
  for (uint g = gl_LocalInvocationID.x; g < n_group; g += gl_WorkGroupSize.x) {
    uint key = group_keys[g], before = 0u;
    for (uint o = 0u; o < n_group; o++) {
      uint other = group_keys[o];
      before += other > key || (other == key && o < g) ? 1u : 0u;
    }
    if (before != keep - 1u) continue;
    cut_key = key;
    cut_group = g;
  }
  sync();
  for (uint i = gl_LocalInvocationID.x; i < push.n_class; i += gl_WorkGroupSize.x) {
    uint g = i / size, key = group_keys[g];
    if (key == 0u || key < cut_key || (key == cut_key && g > cut_group)) set_key(i, 0u);
  }
}

/* The best of the classes first, first + step, ...: key and number; 0 and NONE if none is left. */
void best_from(uint first, uint step, out uint key, out uint at) {
  key = 0u;
  at = NONE;
  for (uint i = first; i < push.n_class; i += step) {
    uint other = key_at(i);
    if (other <= key) continue;
    key = other;
    at = i;
  }
}

/* Class `at` is chosen: its owner's best is another now. */
void remove(uint at, inout uint best, inout uint best_at) {
  uint lane = gl_LocalInvocationID.x, size = gl_WorkGroupSize.x, owner = at & (size - 1u);
  if (lane == owner) set_key(at, 0u);
  if (push.n_class <= 8u * size) {
    if (lane == owner) best_from(lane, size, best, best_at);
    return;
  }
  sync(); /* many classes: all look */
  uint key, next;
  best_from(owner + size * lane, size * size, key, next);
  arg_max(key, next);
  if (lane != owner) return;
  best = key;
  best_at = next;
}

void select(uint t) {
  uint lane = gl_LocalInvocationID.x, size = gl_WorkGroupSize.x, n = push.n_class, k = push.top_k;
  uvec2 row = moi_add(push.input_, moi_mul(moi_mul(moi_element_bytes(INPUT_TYPE), push.stride), t));
  uvec2 logits_out = moi_add(push.logits_out, moi_mul(moi_mul(4u, n), t));
  uint best = 0u, best_at = NONE;
  for (uint i = lane; i < n; i += size) {
    float l = logit_of(row, i);
    if (moi_has(push.logits_out)) SET_FLOAT(logits_out, i, l);
    uint key = min(key_of(l), 0xff7fffffu); /* +infinity counts as the largest finite value */
    if (SCORED) set_logit(i, key);
    else set_key(i, key);
    if (key > best) {
      best = key;
      best_at = i;
    }
  }

  float top = 0.0, inverse = 0.0;
  if (SCORE == SOFTMAX) {
    top = value_of(max_of_all(best));
    float sum = 0.0;
    for (uint i = lane; i < n; i += size) {
      uint key = SCORED ? logit_at(i) : key_at(i);
      if (key != 0u) sum += exp_to_zero(value_of(key) - top);
    }
    sum = sum_of_all(sum);
    inverse = sum > 0.0 ? 1.0 / sum : 0.0;
  }
  if (SCORED) {
    uvec2 bias = push.select_bias;
    if (SELECT_BIAS_ALT && moi_u8(moi_stream(moi_add(push.alt_mask, t)), 0u) != 0u)
      bias = push.select_bias_alt;
    best = 0u;
    best_at = NONE;
    for (uint i = lane; i < n; i += size) {
      uint key = logit_at(i);
      if (key != 0u) {
        float value = value_of(key);
        if (!AFTER_TOPK) value = score_of(value, top, inverse);
        if (SELECT_BIAS) value += FLOAT(bias, i);
        key = key_of(value);
      }
      set_key(i, key);
      if (key > best) {
        best = key;
        best_at = i;
      }
    }
  }

  if (HASH) {
    uint row_at = WORD(push.select_bias_alt, t);
    uvec2 ids = moi_add(push.select_bias, moi_mul(4u * k, row_at));
    sync();
    for (uint j = lane; j < k; j += size) {
      uint id = row_at < push.vocab ? WORD(ids, j) : NONE;
      uint key = id < n ? key_at(id) : 0u;
      slot_id[j] = key != 0u ? int(id) : -1;
      slot_logit[j] = key;
    }
  } else {
    if (GROUPS > 1u) {
      sync();
      limit_groups();
      best_from(lane, size, best, best_at);
    }
    for (uint j = 0u; j < k; j++) {
      uint key = best, at = best_at;
      arg_max(key, at);
      float weight = SCORE == SPARSEMIXER && key != 0u ? sparse_weight(value_of(key)) : 0.0;
      if (lane == 0u) {
        slot_id[j] = int(at);
        slot_logit[j] = key;
        slot_weight[j] = weight;
      }
      if (key != 0u) remove(at, best, best_at);
    }
    sync();
  }

  /* weights: slot j is the invocation j % size's */
  if (SCORE == TOPK_SOFTMAX) {
    uint largest = 0u;
    for (uint j = lane; j < k; j += size)
      if (slot_id[j] >= 0) largest = max(largest, SCORED ? logit_at(uint(slot_id[j])) : slot_logit[j]);
    top = value_of(max_of_all(largest));
  }
  float sum = 0.0;
  for (uint j = lane; j < k; j += size) {
    int id = slot_id[j];
    float weight = 0.0;
    if (id >= 0)
      weight = SCORE == SPARSEMIXER
                   ? slot_weight[j]
                   : score_of(value_of(SCORED ? logit_at(uint(id)) : slot_logit[j]), top, inverse);
    slot_weight[j] = weight;
    sum += weight;
  }
  float factor = 1.0, divisor = 1.0;
  if (SCORE == TOPK_SOFTMAX || RENORM != RENORM_NONE) sum = sum_of_all(sum);
  if (SCORE == TOPK_SOFTMAX) {
    factor = sum > 0.0 ? 1.0 / sum : 0.0;
    sum *= factor;
  }
  if (RENORM != RENORM_NONE) divisor = RENORM == RENORM_SUM ? sum + push.renorm_eps : max(sum, push.renorm_eps);
  uvec2 ids = moi_add(push.ids, moi_mul(4u * k, t)), weights = moi_add(push.weights, moi_mul(4u * k, t));
  for (uint j = lane; j < k; j += size) {
    int id = slot_id[j];
    float weight = divisor == 0.0 ? 0.0 : slot_weight[j] * factor / divisor;
    weight *= push.scale;
    if (EXPERT_SCALE && id >= 0) weight *= FLOAT(push.expert_scale, id);
    SET_INT(ids, j, id);
    SET_FLOAT(weights, j, id < 0 ? 0.0 : moi_round_to(WEIGHT_TYPE, weight));
  }
}

void main() {
  uint n_tokens = push.n_tokens, t = token();
  n_tokens = min(n_tokens, WORD_OR(push.n_tokens_device, 0u, n_tokens));
  if (t < n_tokens) select(t);
}
