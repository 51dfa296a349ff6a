/* A program's memory and threads; what the generated list of steps sees. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#define MAX_THREADS 256

struct program;

struct worker {
    struct program *program;
    pthread_t thread;
    int number;
};

struct program {
    char *memory;  /* the arena, then scratch memory for each thread */
    char *scratch;
    size_t scratch_bytes;
    const void *const *inputs;
    void *const *outputs;
    int threads, started, stop;
    pthread_mutex_t running, lock;
    pthread_cond_t wake;
    _Alignas(64) atomic_uint turn;   /* grows by one with every run */
    _Alignas(64) atomic_int arrived; /* threads at the barrier */
    _Alignas(64) atomic_uint phase;  /* grows by one whenever the barrier opens */
    struct worker workers[MAX_THREADS];
};

int program_create(struct program **out, int threads, size_t arena_bytes, size_t scratch_bytes);
int program_run(struct program *m, const void *const *inputs, void *const *outputs);
void program_destroy(struct program *m);
void program_barrier(struct program *m);

/* Generated: runs every step's share of thread number `thread`. */
void program_steps(struct program *m, int thread);

/* Kernels run their units begin..end; p points to operands, results and packed weights. */
#define KERNEL(name) void name(void *const *p, long begin, long end, char *scratch)

/* One step: all threads, or the first one alone; then everyone waits. */
#define STEP(kernel, units, ...)                                                                   \
    do {                                                                                           \
        void *const p_[] = {__VA_ARGS__};                                                          \
        kernel(p_, (long)(units) * thread / m->threads, (long)(units) * (thread + 1) / m->threads, scratch); \
        program_barrier(m);                                                                        \
    } while (0)
#define STEP_SERIAL(kernel, units, ...)                                                            \
    do {                                                                                           \
        void *const p_[] = {__VA_ARGS__};                                                          \
        if (thread == 0) kernel(p_, 0, units, scratch);                                            \
        program_barrier(m);                                                                        \
    } while (0)

#endif
