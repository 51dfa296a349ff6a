/* What this machine gives: fused multiply-adds per second, and bytes read from memory per second. */
#include "secateur.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define ACCUMULATORS 12
#define PASSES 4

struct part {
    pthread_t thread;
    const char *data;
    long bytes, loops;
    float out;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *multiply(void *argument) {
    struct part *part = argument;
    volatile float one = 1.0f, little = 1e-9f; /* or the compiler would leave the products out */
    v_f32 a[ACCUMULATORS], x = splat_f32(one), y = splat_f32(little);
    UNROLL for (int i = 0; i < ACCUMULATORS; i++) a[i] = splat_f32((float)i);
    for (long n = 0; n < part->loops; n++) {
        UNROLL for (int i = 0; i < ACCUMULATORS; i++) a[i] = a[i] * x + y;
    }
    UNROLL for (int i = 1; i < ACCUMULATORS; i++) a[0] += a[i];
    part->out = sum_lanes_f32(a[0]);
    return NULL;
}

static void *stream(void *argument) {
    struct part *part = argument;
    v_f32 a[4] = {{0}, {0}, {0}, {0}};
    for (long i = 0; i + 4 * VECTOR_BYTES <= part->bytes; i += 4 * VECTOR_BYTES)
        UNROLL for (int j = 0; j < 4; j++) a[j] += load_f32(part->data + i + j * VECTOR_BYTES);
    part->out = sum_lanes_f32(a[0] + a[1] + a[2] + a[3]);
    return NULL;
}

static double run(void *(*work)(void *), struct part *parts, int threads) {
    double best = 1e9;
    for (int pass = 0; pass < PASSES; pass++) {
        double start = now();
        for (int i = 1; i < threads; i++) pthread_create(&parts[i].thread, NULL, work, &parts[i]);
        work(&parts[0]);
        for (int i = 1; i < threads; i++) pthread_join(parts[i].thread, NULL);
        double took = now() - start;
        if (took < best) best = took;
    }
    return best;
}

/* result[0]: floating point operations per second, result[1]: bytes per second, on `threads` threads. */
__attribute__((visibility("default"))) int probe(int threads, double *result) {
    const long bytes = 256L << 20, loops = 8000000;
    struct part *parts = calloc((size_t)threads, sizeof *parts);
    char *data = malloc((size_t)bytes);
    if (!parts || !data) {
        free(parts);
        free(data);
        return -1;
    }
    memset(data, 0, (size_t)bytes);
    for (int i = 0; i < threads; i++) {
        parts[i].loops = loops;
        parts[i].bytes = bytes / threads;
        parts[i].data = data + bytes / threads * i;
    }
    result[0] = 2.0 * LANES * ACCUMULATORS * (double)loops * threads / run(multiply, parts, threads);
    result[1] = (double)bytes / run(stream, parts, threads);
    free(parts);
    free(data);
    return 0;
}
