/* Threads that run the steps of one program together.
 *
 * Between two runs the workers spin for a short while and then sleep. Within a run every thread
 * executes the same list of steps, each on its share of a step's units, with a barrier in between.
 * The last thread to arrive opens the barrier; the others spin, and yield when it takes long, so
 * that a machine with more threads than cores still gets on.
 */
#ifdef __linux__
#define _GNU_SOURCE /* for sched_getaffinity */
#endif
#include "program.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__) && defined(__AMX_TILE__)
#include <sys/syscall.h>
#endif

#define SPINS_IDLE 20000
#define SPINS_BARRIER 4000

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#ifdef PROFILE
#include <time.h>
/* Called by one thread at a time: whoever starts a run, then whoever is last at a barrier. */
static void stamp(struct program *m) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (m->stamps) m->stamps[m->stamped++] = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#define STAMP(m) stamp(m)
#define STAMP_START(m) ((m)->stamped = 0, stamp(m))
#else
#define STAMP(m) (void)0
#define STAMP_START(m) (void)0
#endif

void program_barrier(struct program *m) {
    if (m->threads == 1) {
        STAMP(m);
        atomic_store_explicit(&m->claims[0].taken, 0, memory_order_relaxed);
        return;
    }
    unsigned phase = atomic_load_explicit(&m->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&m->arrived, 1, memory_order_acq_rel) + 1 == m->threads) {
        STAMP(m);
        for (int i = 0; i < m->threads; i++) atomic_store_explicit(&m->claims[i].taken, 0, memory_order_relaxed);
        atomic_store_explicit(&m->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&m->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&m->phase, memory_order_acquire) == phase; spins++) {
        if (spins < SPINS_BARRIER) relax();
        else sched_yield();
    }
}

/* Take a quarter of what is left of the units of thread `owner`: large pieces first, and small ones at
 * the end, where a thread that was held up is waited for. Returns 0 when nothing is left. */
int program_claim(struct program *m, int owner, long units, long *begin, long *end) {
    const long first = units * owner / m->threads, count = units * (owner + 1) / m->threads - first;
    long taken = atomic_load_explicit(&m->claims[owner].taken, memory_order_relaxed), piece;
    do {
        if (taken >= count) return 0;
        piece = m->threads == 1 ? count : (count - taken + 3) / 4;
    } while (!atomic_compare_exchange_weak_explicit(&m->claims[owner].taken, &taken, taken + piece,
                                                    memory_order_relaxed, memory_order_relaxed));
    *begin = first + taken;
    *end = *begin + piece;
    return 1;
}

static void *worker(void *argument) {
    struct worker *w = argument;
    struct program *m = w->program;
    unsigned seen = 0;
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&m->turn, memory_order_acquire) == seen && spins < SPINS_IDLE) {
            relax();
            spins++;
        }
        if (atomic_load_explicit(&m->turn, memory_order_acquire) == seen) {
            pthread_mutex_lock(&m->lock);
            while (atomic_load_explicit(&m->turn, memory_order_acquire) == seen) pthread_cond_wait(&m->wake, &m->lock);
            pthread_mutex_unlock(&m->lock);
        }
        seen = atomic_load_explicit(&m->turn, memory_order_acquire);
        if (m->stop) return NULL;
        program_steps(m, w->number);
        program_barrier(m);
    }
}

int program_run(struct program *m, const void *const *inputs, void *const *outputs) {
    pthread_mutex_lock(&m->running);
    m->inputs = inputs;
    m->outputs = outputs;
    STAMP_START(m);
    if (m->threads > 1) {
        pthread_mutex_lock(&m->lock);
        atomic_fetch_add_explicit(&m->turn, 1, memory_order_release);
        pthread_cond_broadcast(&m->wake);
        pthread_mutex_unlock(&m->lock);
    }
    program_steps(m, 0);
    program_barrier(m);
    pthread_mutex_unlock(&m->running);
    return 0;
}

void program_destroy(struct program *m) {
    if (!m) return;
    if (m->started > 1) {
        pthread_mutex_lock(&m->lock);
        m->stop = 1;
        atomic_fetch_add_explicit(&m->turn, 1, memory_order_release);
        pthread_cond_broadcast(&m->wake);
        pthread_mutex_unlock(&m->lock);
        for (int i = 1; i < m->started; i++) pthread_join(m->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->running);
    free(m->memory);
    free(m);
}

/* The processors this process may use. */
static int processors(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
#endif
    return count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : (int)count;
}

/* Linux gives a process the tile registers of AMX only when it is asked, once for all its threads:
 * arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
static int registers_refused(void) {
#if defined(__linux__) && defined(__AMX_TILE__)
    return syscall(SYS_arch_prctl, 0x1023, 18) != 0;
#else
    return 0;
#endif
}

int program_create(struct program **out, int threads, size_t arena_bytes, size_t scratch_bytes) {
    *out = NULL;
    if (threads == 0) threads = processors();
    if (threads < 1 || threads > MAX_THREADS) return -1;
    if (registers_refused()) return -4;
    struct program *m;
    if (posix_memalign((void **)&m, 64, sizeof *m)) return -2;
    memset(m, 0, sizeof *m);
    m->threads = threads;
    m->started = 1;
    m->scratch_bytes = (scratch_bytes + 64 + 127) / 64 * 64; /* PACKED, and a line apart from the next thread's */
    size_t bytes = arena_bytes + (size_t)threads * m->scratch_bytes;
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->running, NULL);
    pthread_cond_init(&m->wake, NULL);
    if (posix_memalign((void **)&m->memory, 64, bytes ? bytes : 64)) {
        m->memory = NULL;
        program_destroy(m);
        return -2;
    }
    m->scratch = m->memory + arena_bytes;
    for (int i = 1; i < threads; i++) {
        m->workers[i].program = m;
        m->workers[i].number = i;
        if (pthread_create(&m->workers[i].thread, NULL, worker, &m->workers[i])) {
            program_destroy(m);
            return -3;
        }
        m->started = i + 1;
    }
    *out = m;
    return 0;
}
