/* libnvidia-ml.so.1 of an emulated machine: NVIDIA's ABI over a small model of cards.
 *
 * The whole machine lies in one file, mapped shared by every process that loads this library with RIG_NVML_STATE naming it.
 * So another process sees whether clocks came back after the one that locked them was killed.
 *
 * Physics of a card, integrated in steps of at most 5 ms under a lock:
 *   volts      a table over the clock, rounded up to 6.25 mV
 *   dynamic    c V^2 f (gated + (1 - gated) u), u: the share of time in which the cores are not waiting for memory
 *   leakage    exponential in volts and in temperature
 *   supply     resistance times the square of the core's current
 *   heat       two thermal masses in a row of first-order lags
 *   regulators a power cap and a temperature limit, each lowering the clock bin by bin
 * A training step takes t = overhead + ((cycles / f)^p + memory^p)^(1/p): a soft roofline, no a + b/f.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CARDS 4
#define CLOCKS 512
#define VOLTS 32
#define FAULTS 16
#define PIDS 8
#define RING 128
#define TICK 0.005

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7,
       NO_DRIVER = 9, LOST = 15, NO_DATA = 21, UNKNOWN = 999 };
enum { IDLE = 1, POWER_CAP = 4, HW_SLOWDOWN = 8, SW_THERMAL = 0x20, HW_THERMAL = 0x40, BRAKE = 0x80 };

/* Kept in step with the ctypes structures of __init__.py, which compares the sizes. 8-byte members first. */
typedef struct {
    /* what the card is */
    char uuid[96], name[96];
    double volt_mhz[VOLTS], volt_v[VOLTS];
    double farad_w, gated, leak_w, leak_per_v, leak_per_c, board_w, memory_w, supply_ohm;
    double ambient_c, fast_c_per_w, fast_s, slow_c_per_w, slow_s, slowdown_c, shutdown_c;
    double cap_w, lag_s, approximate_mhz;
    double gcycles, memory_s, overhead_s, roofline_p;
    double power_period_s, averaging_s, noise, quantum_mw, energy_period_s, energy_bias, counter_period_s;
    int64_t memory_bytes;
    /* what it is doing */
    double time_s, fast_x, slow_x, power_w, asked_mhz, asked_at_s, base_mhz, real_mhz, regulated_w;
    double cap_due_s, heat_due_s, sensor_due_s, energy_due_s, counter_due_s, ring_due_s;
    double joules, shown_instant_w, shown_average_w, shown_joules, ring[RING];
    uint64_t cap_ns, heat_ns, hw_heat_ns, brake_ns, shown_ns[4], random;
    int64_t locks, resets, forbidden;
    int32_t clocks_mhz[CLOCKS];
    int32_t clock_count, boost_mhz, idle_mhz, memory_mhz, architecture, cc_major, cc_minor, volt_count;
    int32_t locked_min_mhz, locked_max_mhz, cap_bins, heat_bins, ring_at, busy;
    int32_t field_ids[FAULTS], field_errors[FAULTS];
    int32_t loads[PIDS], processes[PIDS];
    /* switches */
    int32_t no_permission, root_only, no_locks, no_instant, no_average, no_energy, zero_energy, no_counters;
    int32_t counter_layout, lost, brake, mig_slice, mig_mode, jetson, averages, persistence;
} Card;

typedef struct {
    char name[64];
    int32_t code, left; /* left < 0: always */
} Fault;

typedef struct {
    pthread_mutex_t lock;
    double now_s, wall_start_s, wall_speed; /* wall_speed 0: virtual, only rig_advance moves time */
    char driver[80], nvml[80];
    Fault faults[FAULTS];
    int32_t cuda, card_count, no_driver, pad;
    Card cards[CARDS];
} State;

static State *machine;
static int started;

static double monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---------------------------------------------------------------- physics */

static double volts(const Card *c, double mhz)
{
    int i = 1;
    while (i < c->volt_count - 1 && mhz > c->volt_mhz[i])
        i++;
    double share = (mhz - c->volt_mhz[i - 1]) / (c->volt_mhz[i] - c->volt_mhz[i - 1]);
    if (share < 0)
        share = 0;
    double v = c->volt_v[i - 1] + share * (c->volt_v[i] - c->volt_v[i - 1]);
    return ceil(v / 0.00625 - 1e-9) * 0.00625;
}

static double step_seconds(const Card *c, double mhz)
{
    double compute = c->gcycles / (mhz * 1e-3), p = c->roofline_p;
    return c->overhead_s + pow(pow(compute, p) + pow(c->memory_s, p), 1 / p);
}

static double watts(const Card *c, double mhz, double temperature, int busy)
{
    double v = volts(c, mhz), t = step_seconds(c, mhz);
    double cores = busy ? c->gcycles / (mhz * 1e-3) / t : 0, memory = busy ? c->memory_s / t : 0;
    double dynamic = c->farad_w * v * v * mhz * 1e-3 * (c->gated + (1 - c->gated) * cores);
    double leak = c->leak_w * exp(c->leak_per_v * (v - 0.8) + c->leak_per_c * (temperature - 40));
    double amperes = (dynamic + leak) / v;
    return c->board_w + c->memory_w * memory + dynamic + leak + c->supply_ohm * amperes * amperes;
}

static double temperature(const Card *c) { return c->ambient_c + c->fast_x + c->slow_x; }

static int bin_of(const Card *c, double mhz)
{
    int i = c->clock_count - 1;
    while (i > 0 && c->clocks_mhz[i] > mhz + 1e-6)
        i--;
    return i;
}

/* The clock that a request becomes: the bin at or below it, and some MHz less where locks are approximate. */
static double granted(const Card *c, double mhz, int locked)
{
    int i = bin_of(c, mhz);
    double below = locked ? c->approximate_mhz * fmod(0.37 + 0.618034 * i, 1.0) : 0;
    return c->clocks_mhz[i] - below;
}

static double gauss(Card *c)
{
    double sum = 0;
    for (int i = 0; i < 6; i++) {
        c->random ^= c->random << 13;
        c->random ^= c->random >> 7;
        c->random ^= c->random << 17;
        sum += (double)(c->random >> 11) / 9007199254740992.0;
    }
    return (sum - 3) * 1.41421356;
}

static void choose_clock(Card *c, double now)
{
    double want = c->busy ? c->boost_mhz : c->idle_mhz;
    int locked = c->locked_max_mhz > 0;
    if (locked && want > c->locked_max_mhz)
        want = c->locked_max_mhz;
    if (locked && want < c->locked_min_mhz)
        want = c->locked_min_mhz;
    if (want != c->asked_mhz) {
        c->asked_mhz = want;
        c->asked_at_s = now;
    }
    if (now >= c->asked_at_s + c->lag_s)
        c->base_mhz = granted(c, want, locked);
    int bin = bin_of(c, c->base_mhz + c->approximate_mhz), down = c->cap_bins + c->heat_bins;
    double held = down == 0 ? c->base_mhz : c->clocks_mhz[bin > down ? bin - down : 0];
    c->real_mhz = held < c->base_mhz ? held : c->base_mhz;
    if (c->brake || temperature(c) > c->shutdown_c)
        c->real_mhz = fmax(c->clocks_mhz[0], c->real_mhz / 2);
}

static void regulate(Card *c, double now)
{
    while (now >= c->cap_due_s) {
        c->cap_due_s += 0.02;
        if (c->regulated_w > c->cap_w) {
            if (c->cap_bins < c->clock_count - 1)
                c->cap_bins += c->regulated_w > 1.08 * c->cap_w ? 2 : 1;
        } else if (c->cap_bins > 0 && c->regulated_w < 0.985 * c->cap_w) {
            c->cap_bins--;
        }
    }
    while (now >= c->heat_due_s) {
        c->heat_due_s += 0.5;
        if (temperature(c) > c->slowdown_c) {
            if (c->heat_bins < c->clock_count - 1)
                c->heat_bins++;
        } else if (c->heat_bins > 0 && temperature(c) < c->slowdown_c - 1) {
            c->heat_bins--;
        }
    }
}

static void show(Card *c, double now)
{
    while (now >= c->ring_due_s) {
        c->ring_due_s += 0.01;
        c->ring_at = (c->ring_at + 1) % RING;
        c->ring[c->ring_at] = c->joules;
    }
    while (now >= c->sensor_due_s) {
        c->sensor_due_s += c->power_period_s;
        int back = (int)lround(c->averaging_s / 0.01);
        if (back > RING - 1)
            back = RING - 1;
        double noise = 1 + c->noise * gauss(c);
        double mean = (c->ring[c->ring_at] - c->ring[(c->ring_at - back + RING) % RING]) / (back * 0.01);
        c->shown_instant_w = c->power_w * noise;
        c->shown_average_w = mean * (1 + 0.3 * (noise - 1));
    }
    while (now >= c->energy_due_s) {
        c->energy_due_s += c->energy_period_s;
        c->shown_joules = c->joules * (1 + c->energy_bias);
    }
    while (now >= c->counter_due_s) {
        c->counter_due_s += c->counter_period_s;
        c->shown_ns[0] = c->cap_ns;
        c->shown_ns[1] = c->heat_ns;
        c->shown_ns[2] = c->hw_heat_ns;
        c->shown_ns[3] = c->brake_ns;
    }
}

static void integrate(Card *c, double until)
{
    while (c->time_s < until) {
        double h = until - c->time_s < TICK ? until - c->time_s : TICK, now = c->time_s + h;
        choose_clock(c, c->time_s);
        c->power_w = watts(c, c->real_mhz, temperature(c), c->busy);
        c->joules += c->power_w * h;
        c->regulated_w += (c->power_w - c->regulated_w) * -expm1(-h / 0.06);
        c->fast_x += (c->fast_c_per_w * c->power_w - c->fast_x) * -expm1(-h / c->fast_s);
        c->slow_x += (c->slow_c_per_w * c->power_w - c->slow_x) * -expm1(-h / c->slow_s);
        uint64_t ns = (uint64_t)llround(h * 1e9);
        if (c->cap_bins > 0)
            c->cap_ns += ns;
        if (c->heat_bins > 0)
            c->heat_ns += ns;
        if (temperature(c) > c->shutdown_c)
            c->hw_heat_ns += ns;
        if (c->brake)
            c->brake_ns += ns;
        c->time_s = now;
        regulate(c, now);
        show(c, now);
    }
}

static uint64_t reasons(const Card *c)
{
    uint64_t bits = c->busy ? 0 : IDLE;
    if (c->cap_bins > 0)
        bits |= POWER_CAP;
    if (c->heat_bins > 0)
        bits |= SW_THERMAL;
    if (temperature(c) > c->shutdown_c)
        bits |= HW_THERMAL | HW_SLOWDOWN;
    if (c->brake)
        bits |= BRAKE | HW_SLOWDOWN;
    return bits;
}

/* ---------------------------------------------------------------- the shared file */

static void enter(void)
{
    if (pthread_mutex_lock(&machine->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&machine->lock);
    if (machine->wall_speed > 0) {
        machine->now_s = (monotonic() - machine->wall_start_s) * machine->wall_speed;
        for (int i = 0; i < machine->card_count; i++) {
            Card *c = &machine->cards[i];
            integrate(c, machine->now_s);
            c->busy = 0;
            for (int p = 0; p < PIDS; p++) {
                if (c->loads[p] && kill(c->loads[p], 0) != 0 && errno == ESRCH)
                    c->loads[p] = 0;
                c->busy |= c->loads[p] != 0;
            }
        }
    }
}

static int leave(int code)
{
    pthread_mutex_unlock(&machine->lock);
    return code;
}

int64_t rig_state_size(void) { return (int64_t)sizeof(State); }

/* Map the machine at `path`. `fresh`: make its lock new (the file was just written). NULL: forget the machine. */
int rig_open(const char *path, int fresh)
{
    if (machine)
        munmap(machine, sizeof(State));
    machine = NULL;
    started = 0;
    if (!path)
        return 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    void *mapped = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return -1;
    machine = mapped;
    if (fresh) {
        pthread_mutexattr_t shared;
        pthread_mutexattr_init(&shared);
        pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&machine->lock, &shared);
        if (machine->wall_speed > 0)
            machine->wall_start_s = monotonic();
    }
    return 0;
}

/* Virtual time: bring every card to `now_s`, the one numbered `busy_card` under load all the way (-1: none). */
void rig_advance(double now_s, int busy_card)
{
    enter();
    for (int i = 0; i < machine->card_count; i++) {
        machine->cards[i].busy = i == busy_card;
        integrate(&machine->cards[i], now_s);
    }
    machine->now_s = now_s;
    leave(0);
}

double rig_step_seconds(int card)
{
    enter();
    Card *c = &machine->cards[card];
    if (!c->busy) { /* a step that starts now raises the clock of an idle card first */
        c->busy = 1;
        choose_clock(c, c->time_s + c->lag_s);
    }
    double seconds = step_seconds(c, c->real_mhz);
    leave(0);
    return seconds;
}

/* A load that runs in this process from now on (or no longer), in wall time. */
void rig_load(int card, int pid, int on)
{
    enter();
    Card *c = &machine->cards[card];
    for (int p = 0; p < PIDS; p++) {
        if (on && c->loads[p] == 0) {
            c->loads[p] = pid;
            break;
        }
        if (!on && c->loads[p] == pid)
            c->loads[p] = 0;
    }
    leave(0);
    enter(); /* busy from this moment */
    leave(0);
}

/* The hidden truth at one real clock: steady watts without cap and heat limit, temperature there, seconds a step. */
void rig_truth(int card, double mhz, int busy, double *power_w, double *celsius, double *step_s)
{
    const Card *c = &machine->cards[card];
    double t = c->ambient_c, p = 0;
    for (int i = 0; i < 500; i++) {
        p = watts(c, mhz, t, busy);
        t = c->ambient_c + (c->fast_c_per_w + c->slow_c_per_w) * p;
        if (t > 150)
            t = 150; /* runaway: no real card gets here */
    }
    *power_w = p;
    *celsius = t;
    *step_s = step_seconds(c, mhz);
}

double rig_granted_mhz(int card, double mhz) { return granted(&machine->cards[card], mhz, 1); }

/* What the card settles at under load with its cap and heat limit in force, locked at `mhz` (0: unlocked): means over the
 * last `mean_s` of `seconds_s` on a copy of the card. */
void rig_settle(int card, double mhz, double seconds_s, double mean_s, double *power_w, double *mean_mhz)
{
    Card *c = malloc(sizeof(Card));
    *c = machine->cards[card];
    c->busy = 1;
    c->locked_min_mhz = c->locked_max_mhz = (int)mhz;
    c->brake = 0;
    integrate(c, c->time_s + seconds_s - mean_s);
    double joules = c->joules, start = c->time_s, sum = 0;
    while (c->time_s < start + mean_s) {
        sum += c->real_mhz * 0.05;
        integrate(c, c->time_s + 0.05);
    }
    *power_w = (c->joules - joules) / (c->time_s - start);
    *mean_mhz = sum / (c->time_s - start);
    free(c);
}

/* ---------------------------------------------------------------- NVML */

typedef Card *Handle; /* as passed around: the card's number + 1 */

static int fault(const char *name)
{
    for (int i = 0; i < FAULTS; i++) {
        Fault *f = &machine->faults[i];
        if (f->code && f->left && strcmp(f->name, name) == 0) {
            if (f->left > 0)
                f->left--;
            return f->code;
        }
    }
    return OK;
}

static int card_of(Handle handle, Card **card, const char *name)
{
    intptr_t number = (intptr_t)handle;
    if (number < 1 || number > machine->card_count)
        return INVALID;
    *card = &machine->cards[number - 1];
    if ((*card)->lost)
        return LOST;
    return fault(name);
}

#define BEGIN                    \
    if (!started || !machine)    \
        return UNINITIALIZED;    \
    enter();
#define CARD(handle)                                \
    BEGIN                                           \
    Card *c;                                        \
    {                                               \
        int code_ = card_of(handle, &c, __func__);  \
        if (code_)                                  \
            return leave(code_);                    \
    }
#define NEEDS(condition) \
    if (!(condition))    \
        return leave(NOT_SUPPORTED);

static int text(char *out, unsigned size, const char *value)
{
    if (strlen(value) + 1 > size)
        return TOO_SMALL;
    strcpy(out, value);
    return OK;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    const char *path = getenv("RIG_NVML_STATE");
    if (!machine && path)
        rig_open(path, 0);
    if (!machine || machine->no_driver)
        return NO_DRIVER;
    started = 1;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return started ? OK : UNINITIALIZED; }

const char *nvmlErrorString(int code)
{
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case TOO_SMALL: return "Insufficient Size";
    case NO_DRIVER: return "Driver Not Loaded";
    case 13: return "Function Not Found";
    case LOST: return "GPU is lost";
    case NO_DATA: return "No data";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    BEGIN
    int code = fault(__func__);
    return leave(code ? code : text(out, size, machine->driver));
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size)
{
    BEGIN
    int code = fault(__func__);
    return leave(code ? code : text(out, size, machine->nvml));
}
int nvmlSystemGetCudaDriverVersion(int *out)
{
    BEGIN
    *out = machine->cuda;
    return leave(fault(__func__));
}
int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    BEGIN
    *out = machine->cuda;
    return leave(fault(__func__));
}
int nvmlDeviceGetCount_v2(unsigned *out)
{
    BEGIN
    unsigned count = 0;
    for (int i = 0; i < machine->card_count; i++)
        count += !machine->cards[i].mig_slice;
    *out = count;
    return leave(fault(__func__));
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *out)
{
    BEGIN
    for (int i = 0; i < machine->card_count; i++)
        if (!machine->cards[i].mig_slice && index-- == 0) {
            *out = (Handle)(intptr_t)(i + 1);
            return leave(machine->cards[i].lost ? LOST : fault(__func__));
        }
    return leave(INVALID);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *out)
{
    BEGIN
    for (int i = 0; i < machine->card_count; i++)
        if (strcmp(machine->cards[i].uuid, uuid) == 0) {
            *out = (Handle)(intptr_t)(i + 1);
            return leave(machine->cards[i].lost ? LOST : fault(__func__));
        }
    return leave(NOT_FOUND);
}
int nvmlDeviceGetUUID(Handle h, char *out, unsigned size)
{
    CARD(h)
    return leave(text(out, size, c->uuid));
}
int nvmlDeviceGetName(Handle h, char *out, unsigned size)
{
    CARD(h)
    return leave(text(out, size, c->name));
}
int nvmlDeviceGetIndex(Handle h, unsigned *out)
{
    CARD(h)
    *out = (unsigned)((intptr_t)h - 1);
    return leave(OK);
}
int nvmlDeviceGetArchitecture(Handle h, unsigned *out)
{
    CARD(h)
    *out = (unsigned)c->architecture;
    return leave(OK);
}
int nvmlDeviceGetCudaComputeCapability(Handle h, int *major, int *minor)
{
    CARD(h)
    *major = c->cc_major;
    *minor = c->cc_minor;
    return leave(OK);
}

struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(Handle h, struct memory *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    out->total = (unsigned long long)c->memory_bytes;
    out->used = 600ull << 20;
    out->free = out->total - out->used;
    return leave(OK);
}
int nvmlDeviceGetUtilizationRates(Handle h, unsigned *out)
{
    CARD(h)
    out[0] = c->busy ? 100 : 0;
    out[1] = c->busy ? 60 : 0;
    return leave(OK);
}

int nvmlDeviceGetPowerUsage(Handle h, unsigned *mw)
{
    CARD(h)
    NEEDS(!c->jetson && !c->mig_slice)
    double shown = c->averages ? c->shown_average_w : c->shown_instant_w;
    *mw = (unsigned)(llround(shown * 1e3 / c->quantum_mw) * (long long)c->quantum_mw);
    return leave(OK);
}

static int energy_mj(const Card *c, unsigned long long *mj)
{
    if (c->no_energy || c->jetson || c->mig_slice || c->architecture < 5)
        return NOT_SUPPORTED;
    *mj = c->zero_energy ? 0 : 5000000ull + (unsigned long long)llround(c->shown_joules * 1e3);
    return OK;
}
#ifndef RIG_ANCIENT
int nvmlDeviceGetTotalEnergyConsumption(Handle h, unsigned long long *mj)
{
    CARD(h)
    return leave(energy_mj(c, mj));
}

typedef struct {
    uint32_t fieldId, scopeId;
    int64_t timestamp, latencyUsec;
    uint32_t valueType, nvmlReturn;
    union { double d; uint32_t ui; unsigned long ul; unsigned long long ull; long long sll; } value;
} Field;

/* The ns counters moved between header versions: 251..253 (layout 0) or 269..271 (layout 1), the other range then holds
 * settings of power smoothing, which most cards do not have. */
static int counter_of(const Card *c, uint32_t id)
{
    uint32_t base = c->counter_layout ? 269 : 251;
    if (id == 74)
        return 0;
    if (id == 75)
        return 1;
    return id >= base && id < base + 3 ? (int)(id - base) + 1 : -1;
}

static int field(Card *c, Field *f)
{
    int counter = counter_of(c, f->fieldId);
    for (int i = 0; i < FAULTS; i++)
        if (c->field_errors[i] && (uint32_t)c->field_ids[i] == f->fieldId)
            return c->field_errors[i];
    if (c->jetson || c->mig_slice || f->scopeId != 0)
        return NOT_SUPPORTED;
    if (f->fieldId == 83) {
        f->valueType = 3;
        return energy_mj(c, &f->value.ull);
    }
    if ((f->fieldId == 185 && !c->no_average) || (f->fieldId == 186 && !c->no_instant)) {
        double shown = f->fieldId == 185 ? c->shown_average_w : c->shown_instant_w;
        f->valueType = 1;
        f->value.ui = (uint32_t)(llround(shown * 1e3 / c->quantum_mw) * (long long)c->quantum_mw);
        return OK;
    }
    if (counter >= 0 && !c->no_counters) {
        f->valueType = 3;
        f->value.ull = c->shown_ns[counter];
        return OK;
    }
    return NOT_SUPPORTED;
}

int nvmlDeviceGetFieldValues(Handle h, int count, Field *fields)
{
    CARD(h)
    int good = 0;
    for (int i = 0; i < count; i++) {
        fields[i].timestamp = (int64_t)(machine->now_s * 1e6);
        fields[i].latencyUsec = 10;
        fields[i].value.ull = 0;
        fields[i].nvmlReturn = (uint32_t)field(c, &fields[i]);
        good += fields[i].nvmlReturn == OK;
    }
    return leave(good || count == 0 ? OK : NOT_SUPPORTED);
}
#endif

struct violation { unsigned long long reference_us, ns; };
int nvmlDeviceGetViolationStatus(Handle h, unsigned policy, struct violation *out)
{
    CARD(h)
    NEEDS(!c->jetson && !c->no_counters && policy < 2)
    out->reference_us = (unsigned long long)(machine->now_s * 1e6);
    out->ns = c->shown_ns[policy];
    return leave(OK);
}

int nvmlDeviceGetClock(Handle h, unsigned type, unsigned which, unsigned *mhz)
{
    CARD(h)
    NEEDS(!c->jetson && which == 0)
    *mhz = (unsigned)lround(type == 2 ? c->memory_mhz : c->real_mhz);
    return leave(OK);
}
int nvmlDeviceGetClockInfo(Handle h, unsigned type, unsigned *mhz)
{
    CARD(h)
    NEEDS(!c->jetson)
    *mhz = (unsigned)lround(type == 2 ? c->memory_mhz : c->real_mhz);
    return leave(OK);
}
int nvmlDeviceGetMaxClockInfo(Handle h, unsigned type, unsigned *mhz)
{
    CARD(h)
    NEEDS(!c->jetson)
    *mhz = (unsigned)(type == 2 ? c->memory_mhz : c->clocks_mhz[c->clock_count - 1]);
    return leave(OK);
}
int nvmlDeviceGetSupportedMemoryClocks(Handle h, unsigned *count, unsigned *mhz)
{
    CARD(h)
    NEEDS(!c->jetson && !c->mig_slice)
    unsigned room = *count;
    *count = 2;
    if (room < 2 || !mhz)
        return leave(TOO_SMALL);
    mhz[0] = (unsigned)c->memory_mhz;
    mhz[1] = 405;
    return leave(OK);
}
int nvmlDeviceGetSupportedGraphicsClocks(Handle h, unsigned memory_mhz, unsigned *count, unsigned *mhz)
{
    CARD(h)
    NEEDS(!c->jetson && !c->mig_slice)
    /* at the low memory clock only the lowest clocks are offered, as on real cards */
    int offered = memory_mhz == (unsigned)c->memory_mhz ? c->clock_count : memory_mhz == 405 ? 3 : 0;
    if (!offered)
        return leave(NOT_FOUND);
    unsigned room = *count;
    *count = (unsigned)offered;
    if (room < (unsigned)offered || !mhz)
        return leave(TOO_SMALL);
    for (int i = 0; i < offered; i++)
        mhz[i] = (unsigned)c->clocks_mhz[offered - 1 - i];
    return leave(OK);
}

int nvmlDeviceGetTemperature(Handle h, unsigned sensor, unsigned *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    if (sensor != 0)
        return leave(INVALID);
    *out = (unsigned)lround(temperature(c));
    return leave(OK);
}
#if !defined(RIG_OLD) && !defined(RIG_ANCIENT)
struct celsius { unsigned version, sensor; int value; };
int nvmlDeviceGetTemperatureV(Handle h, struct celsius *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    if (out->version != (sizeof(*out) | 1u << 24))
        return leave(25);
    out->value = (int)lround(temperature(c));
    return leave(OK);
}
int nvmlDeviceGetCurrentClocksEventReasons(Handle h, unsigned long long *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    *out = reasons(c);
    return leave(OK);
}
struct process { unsigned pid; unsigned long long bytes; unsigned gpu, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(Handle h, unsigned *count, struct process *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    unsigned found = 0, room = *count;
    for (int i = 0; i < PIDS; i++)
        if (c->processes[i]) {
            if (found < room)
                out[found] = (struct process){(unsigned)c->processes[i], 1u << 28, ~0u, ~0u};
            found++;
        }
    *count = found;
    return leave(found > room ? TOO_SMALL : OK);
}
#endif
int nvmlDeviceGetCurrentClocksThrottleReasons(Handle h, unsigned long long *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    *out = reasons(c);
    return leave(OK);
}

int nvmlDeviceGetEnforcedPowerLimit(Handle h, unsigned *mw)
{
    CARD(h)
    NEEDS(!c->jetson && !c->mig_slice)
    *mw = (unsigned)lround(c->cap_w * 1e3);
    return leave(OK);
}
int nvmlDeviceGetPowerManagementLimit(Handle h, unsigned *mw) { return nvmlDeviceGetEnforcedPowerLimit(h, mw); }
int nvmlDeviceGetPersistenceMode(Handle h, unsigned *out)
{
    CARD(h)
    *out = (unsigned)c->persistence;
    return leave(OK);
}
int nvmlDeviceGetComputeMode(Handle h, unsigned *out)
{
    CARD(h)
    *out = 0;
    return leave(OK);
}
int nvmlDeviceGetPerformanceState(Handle h, unsigned *out)
{
    CARD(h)
    NEEDS(!c->jetson)
    *out = c->busy || c->locked_max_mhz ? 2 : 8;
    return leave(OK);
}
int nvmlDeviceGetMigMode(Handle h, unsigned *current, unsigned *pending)
{
    CARD(h)
    NEEDS(c->mig_mode >= 0)
    *current = *pending = (unsigned)c->mig_mode;
    return leave(OK);
}
int nvmlDeviceGetEccMode(Handle h, unsigned *current, unsigned *pending)
{
    CARD(h)
    NEEDS(c->cc_major == 8 && c->cc_minor == 0)
    *current = *pending = 1;
    return leave(OK);
}
int nvmlDeviceIsMigDeviceHandle(Handle h, unsigned *out)
{
    CARD(h)
    *out = (unsigned)c->mig_slice;
    return leave(OK);
}

#ifndef RIG_ANCIENT
static int may_set(const Card *c)
{
    if (c->no_locks || c->jetson || c->architecture < 5)
        return NOT_SUPPORTED;
    return c->no_permission || (c->root_only && geteuid() != 0) ? NO_PERMISSION : OK;
}
int nvmlDeviceSetGpuLockedClocks(Handle h, unsigned low, unsigned high)
{
    CARD(h)
    int code = may_set(c);
    if (code)
        return leave(code);
    if (low > high || high < (unsigned)c->clocks_mhz[0])
        return leave(INVALID);
    c->locked_min_mhz = (int)low;
    c->locked_max_mhz = (int)high;
    c->locks++;
    return leave(OK);
}
int nvmlDeviceResetGpuLockedClocks(Handle h)
{
    CARD(h)
    int code = may_set(c);
    if (code)
        return leave(code);
    c->locked_min_mhz = c->locked_max_mhz = 0;
    c->resets++;
    return leave(OK);
}

/* Nobody may call these: the figures would no longer be the machine's own. */
#define FORBIDDEN(name, ...)      \
    int name(Handle h, __VA_ARGS__) \
    {                             \
        CARD(h)                   \
        c->forbidden++;           \
        return leave(OK);         \
    }
FORBIDDEN(nvmlDeviceSetMemoryLockedClocks, unsigned low, unsigned high)
FORBIDDEN(nvmlDeviceSetApplicationsClocks, unsigned memory, unsigned graphics)
FORBIDDEN(nvmlDeviceSetPowerManagementLimit, unsigned mw)
FORBIDDEN(nvmlDeviceSetPersistenceMode, unsigned mode)
FORBIDDEN(nvmlDeviceSetComputeMode, unsigned mode)
int nvmlDeviceResetMemoryLockedClocks(Handle h)
{
    CARD(h)
    c->forbidden++;
    return leave(OK);
}
#endif
