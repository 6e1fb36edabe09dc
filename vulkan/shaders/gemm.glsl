/* What the grouped GEMMs share: arguments, work items, and what is done with a result. */
#include "fetch.glsl"

layout(constant_id = 1) const uint GATE_UP = 0u; /* 1: two matrices and an activation */

/* One matrix of every expert; as moi_vk_matrix of grouped.c. */
struct Matrix {
  uvec2 data, scales, zeros, bias; /* of expert 0, or tables of addresses */
  uvec2 data_stride, scales_stride, zeros_stride, bias_stride;
  uvec2 global_scale; /* [e] f32 or absent */
  uint tables, rows;  /* rows: N of the whole matrix */
  uint row_mul, row_add; /* column j of the result is row j * row_mul + row_add */
};
#define MOI_FIELD_M(name) Matrix name;
#define MOI_READ_M(name)                                                                                               \
  MOI_READ_P(name.data) MOI_READ_P(name.scales) MOI_READ_P(name.zeros) MOI_READ_P(name.bias)                           \
  MOI_READ_P(name.data_stride) MOI_READ_P(name.scales_stride) MOI_READ_P(name.zeros_stride) MOI_READ_P(name.bias_stride) \
  MOI_READ_P(name.global_scale) MOI_READ_U(name.tables) MOI_READ_U(name.rows) MOI_READ_U(name.row_mul)                 \
  MOI_READ_U(name.row_add)

/* As moi_vk_gemm_args of grouped.c. */
#define GEMM_ARGS(P, P2, U, U2, F, M)                                                                                  \
  M(up) M(gate)                                                                                                        \
  P(x) P(y) P(permutation) P(n_rows_device) P(weights)                                                                 \
  U(ldx) U(ldy) U(n) U(k)                                                                                              \
  U(x_div) U(n_rows) U(bias_type) U(activation)                                                                        \
  U(mid_type) U(has_gate) U(rows_per_count) U(reserved)                                                                \
  F(alpha) F(limit)
MOI_ARGS(GemmArgs, GEMM_ARGS)

layout(push_constant) uniform Push {
  uvec2 args;
  uvec2 items; /* how many, two unused, then (expert, first position, rows) of each; absent: one expert, all rows */
  uint m_tile, block0; /* rows of an item; the first block of columns */
};

struct Item {
  uint expert, first, rows;
};

uint item_count(GemmArgs a, out uint n_rows) {
  n_rows = a.n_rows;
  uint counted = WORD_OR(a.n_rows_device, 0u, 0xffffffffu);
  n_rows = counted < n_rows / a.rows_per_count ? counted * a.rows_per_count : n_rows;
  return WORD_OR(items, 0u, (n_rows + m_tile - 1u) / m_tile);
}

Item item_at(uint i, uint n_rows) {
  if (!moi_has(items)) return Item(0u, i * m_tile, min(m_tile, n_rows - i * m_tile));
  uvec2 at = moi_add(moi_instead(items, args), moi_mul(12u, i + 1u));
  return Item(WORD(at, 0), WORD(at, 1), WORD(at, 2));
}

/* Slot of a sorted position. */
uint slot_of(GemmArgs a, uint position) {
  return WORD_OR(a.permutation, position, position);
}

#ifdef MOI_SETS /* stride.y: experts of a buffer, behind which the next one begins as this did; 0: all are in one */
uvec2 expert_address(uvec2 base, uvec2 stride, uint tables, uint e) {
  uint part = stride.y != 0u ? e / stride.y : 0u;
  return moi_has(base) ? uvec2(base.x + stride.x * (e - part * stride.y), base.y + part) : base;
}
#else
uvec2 expert_address(uvec2 base, uvec2 stride, uint tables, uint e) {
  if (tables == 0u) return moi_has(base) ? moi_add(base, moi_mul(stride, e)) : base;
  if (!moi_has(base)) return base;
  uvec2 entry = moi_add(base, moi_mul(8u, e));
  return uvec2(WORD(entry, 0), WORD(entry, 1));
}
#endif

/* One expert's streams. An expert without an address has no rows to be multiplied: its results are 0. */
struct Streams {
  Stream d, s, z;
  uvec2 bias;
  float global_scale;
  bool there;
};
Streams streams_of(Matrix m, uint e, uint bias_type) {
  Streams r;
  uvec2 d = expert_address(m.data, m.data_stride, m.tables, e), s = expert_address(m.scales, m.scales_stride, m.tables, e),
        z = expert_address(m.zeros, m.zeros_stride, m.tables, e);
  r.bias = expert_address(m.bias, m.bias_stride, m.tables, e);
  r.there = moi_has(d) && (!moi_has(m.scales) || moi_has(s)) && (!moi_has(m.zeros) || moi_has(z)) &&
            (bias_type == 0u || moi_has(r.bias));
  r.d = moi_stream(d), r.s = moi_stream(s), r.z = moi_stream(z);
  r.global_scale = FLOAT_OR(m.global_scale, e, 1.0);
  return r;
}

/* ---- moi_activation */

/* Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most, which is what 1 + erf has of precision. */
float moi_erf(float x) {
  float a = abs(x);
  precise float t = 1.0 / (1.0 + 0.3275911 * a);
  precise float p = 1.061405429;
  p = p * t - 1.453152027;
  p = p * t + 1.421413741;
  p = p * t - 0.284496736;
  p = p * t + 0.254829592;
  precise float r = 1.0 - p * t * moi_exp(-a * a);
  return x < 0.0 ? -r : r;
}

float clamp_to(float x, float limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

float activate(GemmArgs a, float g, float u) {
  float alpha = a.alpha, limit = a.limit;
  switch (a.activation) {
    case 0u:
      if (limit > 0.0) g = g > limit ? limit : g, u = clamp_to(u, limit);
      return g * moi_sigmoid(g) * u;
    case 1u: g = g > limit ? limit : g; return g * moi_sigmoid(alpha * g) * (clamp_to(u, limit) + 1.0);
    case 2u: return 0.5 * g * (1.0 + moi_tanh(0.797884561 * (g + 0.044715 * g * g * g))) * u;
    case 3u: return 0.5 * g * (1.0 + moi_erf(g * 0.707106781)) * u;
    case 4u: return alpha * moi_tanh(g / alpha) * moi_sigmoid(g) * (limit * moi_tanh(u / limit));
    default: return u < 0.0 ? 0.0 : u * u;
  }
}

/* Columns that a workgroup has to fill: behind n there are zeros where rows are an operand of the next product. */
uint columns_of(GemmArgs a) { return GATE_UP != 0u ? a.ldy : a.n; }

/* Writes column j of a slot's row: u and g are the dot products, before the expert's scale and bias. */
void finish(GemmArgs a, Streams su, Streams sg, uint slot, uint j, float u, float g) {
  uvec2 row = moi_add(a.y, moi_mul(uvec2(a.ldy * 4u, a.ldy >> 30), slot));
  if (j >= a.n) {
    if (j < a.ldy && GATE_UP != 0u) SET_FLOAT(row, j, 0.0);
    return;
  }
  u = su.there ? u * su.global_scale : 0.0;
  if (a.bias_type != 0u && su.there) u += moi_load(a.bias_type, su.bias, j * a.up.row_mul + a.up.row_add);
  if (GATE_UP != 0u) {
    if (a.has_gate != 0u) {
      g = sg.there ? g * sg.global_scale : 0.0;
      if (a.bias_type != 0u && sg.there) g += moi_load(a.bias_type, sg.bias, j * a.gate.row_mul + a.gate.row_add);
    }
    u = activate(a, g, u);
    if (moi_has(a.weights)) u *= FLOAT_OR(a.weights, slot, 1.0);
    u = moi_round_to(a.mid_type, u);
  }
  SET_FLOAT(row, j, u);
}
