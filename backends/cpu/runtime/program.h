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

/* How many units of its share of the current step a thread has given away, to itself or to others. */
struct claims {
    _Alignas(64) atomic_long taken;
};

struct program {
    char *memory;  /* the arena, then scratch memory for each thread */
    char *scratch;
    size_t scratch_bytes;
    const void *const *inputs;
    void *const *outputs;
    int threads, started, stop;
#ifdef PROFILE
    /* Profiling costs nothing unless a copy of the program is compiled for it: then the seconds when
     * a run began, and when the last thread was done with each step, are noted here. */
    double *stamps;
    int stamped;
#endif
    pthread_mutex_t running, lock;
    pthread_cond_t wake;
    _Alignas(64) atomic_uint turn;   /* grows by one with every run */
    _Alignas(64) atomic_int arrived; /* threads at the barrier */
    _Alignas(64) atomic_uint phase;  /* grows by one whenever the barrier opens */
    struct claims claims[MAX_THREADS];
    struct worker workers[MAX_THREADS];
};

int program_create(struct program **out, int threads, size_t arena_bytes, size_t scratch_bytes);
int program_run(struct program *m, const void *const *inputs, void *const *outputs);
void program_destroy(struct program *m);
void program_barrier(struct program *m);
int program_claim(struct program *m, int owner, long units, long *begin, long *end);

/* Generated: runs every step's share of thread number `thread`. */
void program_steps(struct program *m, int thread);

/* Kernels run their units begin..end, often in several calls; p points to operands, results and
 * packed weights. The first 64 bytes of a thread's scratch memory hold PACKED, which is -1 when a step
 * begins: a kernel that packs something notes there what it was, and need not do it again. */
#define PACKED (*(long *)scratch)
#define SCRATCH (scratch + 64)
#define KERNEL(name) void name(void *const *p, long begin, long end, char *scratch)

/* One step: every thread works on its own share, so that a core keeps its rows from step to step, and
 * then helps the others; or the first thread works alone. Then everyone waits. */
#define STEP(kernel, units, ...)                                                                   \
    do {                                                                                           \
        void *const p_[] = {__VA_ARGS__};                                                          \
        long begin_, end_;                                                                         \
        PACKED = -1;                                                                               \
        for (int i_ = 0; i_ < m->threads; i_++)                                                    \
            while (program_claim(m, (thread + i_) % m->threads, units, &begin_, &end_))            \
                kernel(p_, begin_, end_, scratch);                                                 \
        program_barrier(m);                                                                        \
    } while (0)
#define STEP_SERIAL(kernel, units, ...)                                                            \
    do {                                                                                           \
        void *const p_[] = {__VA_ARGS__};                                                          \
        PACKED = -1;                                                                               \
        if (thread == 0) kernel(p_, 0, units, scratch);                                            \
        program_barrier(m);                                                                        \
    } while (0)

#endif
