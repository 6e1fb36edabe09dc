/* What a report is made of: the rows of JSON results of moiety bench, checked, and the machines they were measured on.
 * Nothing in a file is trusted: what is no result of moiety bench is refused with words. */
#ifndef MOI_BENCH_REPORT_ROWS_H
#define MOI_BENCH_REPORT_ROWS_H

#include <cjson/cJSON.h>
#include <stddef.h>

enum { MOI_REPORT_FILES = 64, MOI_REPORT_ROWS = 20000, MOI_REPORT_PEAKS = 16 };

/* A row: a benchmark's median where it was repeated. Numbers that a file does not have are NaN, texts "". */
typedef struct moi_report_row {
  int file, machine;
  char *name; /* owns the next five */
  const char *op, *backend, *kernel, *format, *preset;
  double tokens;
  char *shape;               /* what else tells it from others: "kind full, kv_len 512" */
  char *series;              /* the same with what grows with the tokens: "kind full, kv_len = tokens" */
  char *also;                /* numbers of the row that have no column */
  double seconds, low, high; /* low, high: of the single repetitions */
  int repetitions;
  double bytes_per_second, flops_per_second, bandwidth_fraction, compute_fraction;
  const char *compute_name; /* the peak that compute_fraction is of */
  double error, tolerance;  /* of the check against the reference */
  const char *failure;      /* NULL, or why there is no time */
} moi_report_row;

typedef struct moi_report_peak {
  char name[32];    /* "read", "f32" */
  const char *unit; /* "GB/s", "GFLOP/s", "GOP/s" */
  double value;
} moi_report_peak;

typedef struct moi_report_file {
  const char *path;
  cJSON *json;
  const cJSON *context;
  const char *device, *isa, *version, *commit, *date, *layers, *host, *command; /* "" if unknown */
  double threads, cpus, memory; /* GB; NAN: unknown */
  moi_report_peak peaks[MOI_REPORT_PEAKS];
  int n_peaks, n_rows, machine;
} moi_report_file;

/* Files of one machine, unless they measured the same rows: then each is a run of its own. */
typedef struct moi_report_machine {
  int first_file, n_files;
  char name[96];  /* short; no two are equal */
  char letter[4]; /* "A" */
} moi_report_machine;

typedef struct moi_report {
  moi_report_file files[MOI_REPORT_FILES];
  moi_report_machine machines[MOI_REPORT_FILES];
  moi_report_row *rows;
  int n_files, n_machines, n_rows;
  size_t capacity;
} moi_report;

/* 0, or 1 and what is wrong with which file. Free it in both cases. */
int moi_report_read(int n, char *const *paths, moi_report *out, char *error, size_t error_size);
void moi_report_free(moi_report *report);

/* Orders and compares rows by letters: p preset, o op, h shape, y series, t tokens, f format, m machine, b backend,
 * k kernel, s seconds. The sort is stable. 0, or 1 if memory is out. */
int moi_rows_sort(const moi_report_row **rows, int n, const char *keys);
int moi_rows_compare(const moi_report_row *a, const moi_report_row *b, const char *keys);
/* How many rows from the first on are equal in these. */
int moi_rows_run(const moi_report_row **rows, int n, const char *keys);

/* The fraction of the limit that the row is nearer to, and which that is ("memory bandwidth", "f32 FMA"). NaN, "". */
double moi_row_limit(const moi_report_row *row, const char **name);

/* A peak of a machine: the largest of its files; NaN if none has it. */
double moi_machine_peak(const moi_report *report, int machine, const char *name);

#endif
