/* A PKCS#11 module in front of another one that imposes the limits of other modules, one at a time.
 *
 * Its files lie beside it: PATH.target is the module behind it. PATH.limits has lines NAME=VALUE, read anew at each
 * call, so that a test can set and lift limits while a vault is open. PATH.counts gets a line for each call. PATH.pin
 * makes it one without PINs. PATH.logout lets the next search find its user logged out. Copy it, and its target, for each test: copies share nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST shim;
static long sessions, initializations, encryptions;
static CK_OBJECT_HANDLE last_found;
static pid_t process;
static char here[4096]; /* this library's own path */

static const char *beside(const char *what)
{
    static _Thread_local char path[4200];
    snprintf(path, sizeof path, "%s.%s", here, what);
    return path;
}

static long limit(const char *name)
{
    char line[256];
    size_t length = strlen(name);
    long value = 0;
    FILE *file = fopen(beside("limits"), "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, length) && line[length] == '=')
            value = strtol(line + length + 1, NULL, 0);
    if (file)
        fclose(file);
    return value;
}

static int attribute_limited(const char *name, CK_ATTRIBUTE_TYPE type)
{
    char which[64];
    snprintf(which, sizeof which, "%s_0x%lx", name, type);
    return limit(which) != 0;
}

static void count(const char *function)
{
    char line[64];
    int file = open(beside("counts"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    int length = snprintf(line, sizeof line, "%d %s\n", (int)getpid(), function);
    if (file >= 0) {
        if (write(file, line, length) < 0) { }
        close(file);
    }
}

/* A call that hangs until the limit HANG is lifted, or fails while DEAD gives a return code. */
static CK_RV enter(const char *function)
{
    char which[64];
    count(function);
    snprintf(which, sizeof which, "HANG_%s", function);
    while (limit(which) || limit("HANG"))
        usleep(10000);
    snprintf(which, sizeof which, "FAIL_%s", function);
    long code = limit(which);
    return code ? code : limit("DEAD");
}
#define ENTER(function) do { CK_RV code = enter(function); if (code) return code; } while (0)

static CK_RV initialize(void *arguments)
{
    ENTER("C_Initialize");
    initializations++;
    if (limit("ARGUMENTS")) {
        CK_C_INITIALIZE_ARGS *given = arguments;
        if (!given || !given->pReserved || strcmp(given->pReserved, "config='x' flags=y"))
            return CKR_ARGUMENTS_BAD;
        arguments = NULL;
    }
    if (limit("ONCE") && initializations > 1)
        return CKR_GENERAL_ERROR;
    if (limit("KNOWS_FORKS") && process && process != getpid())
        real->C_Finalize(NULL);
    process = getpid();
    return real->C_Initialize(arguments);
}

static CK_RV finalize(void *reserved)
{
    ENTER("C_Finalize");
    sessions = 0;
    return real->C_Finalize(reserved);
}

/* Slots are numbered from SLOT_BASE. EMPTY_SLOTS stand before and behind them, whose tokens that return code tells of.
 * Each slot has a TWIN with the same token. */
#define TWIN_BIT (1UL << 62)
#define EMPTY_FIRST 0UL
#define EMPTY_LAST (~0UL - 1)
#define SLOTS_MAX 4096

static CK_SLOT_ID slot_behind(CK_SLOT_ID slot)
{
    return (slot & ~(limit("TWINS") ? TWIN_BIT : 0UL)) - (CK_SLOT_ID)limit("SLOT_BASE");
}

static CK_RV get_slot_list(CK_BBOOL present, CK_SLOT_ID *list, CK_ULONG *length)
{
    ENTER("C_GetSlotList");
    static CK_SLOT_ID all[SLOTS_MAX];
    CK_ULONG found = SLOTS_MAX / 2 - 2, count = 0;
    CK_RV code = real->C_GetSlotList(present, all + SLOTS_MAX / 2, &found);
    if (code)
        return code;
    if (limit("EMPTY_SLOTS"))
        all[count++] = EMPTY_FIRST;
    for (CK_ULONG i = 0; i < found; i++) {
        CK_SLOT_ID slot = all[SLOTS_MAX / 2 + i] + limit("SLOT_BASE");
        if (limit("TWINS"))
            all[count++] = slot | TWIN_BIT;
        all[count++] = slot;
    }
    if (limit("EMPTY_SLOTS"))
        all[count++] = EMPTY_LAST;
    if (list && *length < count)
        code = CKR_BUFFER_TOO_SMALL;
    else if (list)
        memcpy(list, all, count * sizeof *list);
    *length = count;
    return code;
}

static CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    ENTER("C_GetTokenInfo");
    if (limit("EMPTY_SLOTS") && (slot == EMPTY_FIRST || slot == EMPTY_LAST))
        return limit("EMPTY_SLOTS");
    CK_RV code = real->C_GetTokenInfo(slot_behind(slot), info);
    if (!code) {
        info->flags |= limit("FLAGS_ON");
        info->flags &= ~(CK_FLAGS)limit("FLAGS_OFF");
    }
    return code;
}

/* A module without PINs: logged in as soon as there is a session. */
static void log_in_by_itself(CK_SESSION_HANDLE session)
{
    char pin[256];
    FILE *file = fopen(beside("pin"), "r");
    if (!file)
        return;
    if (fgets(pin, sizeof pin, file))
        real->C_Login(session, CKU_USER, (CK_UTF8CHAR *)pin, strcspn(pin, "\n"));
    fclose(file);
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *handle)
{
    ENTER("C_OpenSession");
    long most = limit("SESSIONS");
    if (most && sessions >= most)
        return limit("SESSIONS_CODE") ? limit("SESSIONS_CODE") : CKR_SESSION_COUNT;
    if (limit("READ_ONLY") && (flags & CKF_RW_SESSION))
        return CKR_TOKEN_WRITE_PROTECTED;
    if (limit("NO_READ_ONLY") && !(flags & CKF_RW_SESSION))
        return limit("NO_READ_ONLY");
    CK_RV code = real->C_OpenSession(slot_behind(slot), flags, application, notify, handle);
    if (!code) {
        sessions++;
        log_in_by_itself(*handle);
    }
    return code;
}

static CK_RV close_session(CK_SESSION_HANDLE session)
{
    ENTER("C_CloseSession");
    if (limit("LOGOUT_AT_CLOSE"))
        real->C_Logout(session);
    CK_RV code = real->C_CloseSession(session);
    if (!code)
        sessions--;
    return code;
}

static CK_RV get_session_info(CK_SESSION_HANDLE session, CK_SESSION_INFO *info)
{
    ENTER("C_GetSessionInfo");
    return real->C_GetSessionInfo(session, info);
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length)
{
    ENTER("C_Login");
    CK_RV code = real->C_Login(session, user, pin, length);
    return code == CKR_USER_ALREADY_LOGGED_IN && limit("LOGS_IN_AGAIN") ? CKR_OK : code;
}

static CK_RV find_objects_init(CK_SESSION_HANDLE session, CK_ATTRIBUTE *template, CK_ULONG length)
{
    ENTER("C_FindObjectsInit");
    if (!unlink(beside("logout")))
        real->C_Logout(session);
    last_found = 0;
    return real->C_FindObjectsInit(session, template, length);
}

static CK_RV find_objects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG most, CK_ULONG *length)
{
    ENTER("C_FindObjects");
    if (limit("FOUND_AT_ONCE") && most > (CK_ULONG)limit("FOUND_AT_ONCE"))
        most = limit("FOUND_AT_ONCE");
    CK_RV code = real->C_FindObjects(session, found, most, length);
    if (!code && limit("FOUND_FOR_EVER")) { /* the same object again and again */
        if (*length)
            last_found = found[0];
        else if (last_found)
            found[(*length)++] = last_found;
    }
    return code;
}

static CK_RV get_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *asked, CK_ULONG length)
{
    ENTER("C_GetAttributeValue");
    for (CK_ULONG i = 0; i < length; i++)
        if (attribute_limited("UNTOLD", asked[i].type)) {
            asked[i].ulValueLen = (CK_ULONG)-1;
            return limit("UNTOLD_CODE") ? limit("UNTOLD_CODE") : CKR_ATTRIBUTE_TYPE_INVALID;
        }
    CK_RV code = real->C_GetAttributeValue(session, object, asked, length);
    for (CK_ULONG i = 0; !code && i < length; i++)
        if (asked[i].pValue) {
            if (attribute_limited("TRUE", asked[i].type))
                *(CK_BBOOL *)asked[i].pValue = CK_TRUE;
            if (attribute_limited("FALSE", asked[i].type))
                *(CK_BBOOL *)asked[i].pValue = CK_FALSE;
        }
    if (limit("LOGOUT_AFTER_ATTRIBUTES"))
        real->C_Logout(session);
    return code;
}

static CK_RV generate_key(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *template, CK_ULONG length, CK_OBJECT_HANDLE *key)
{
    ENTER("C_GenerateKey");
    return real->C_GenerateKey(session, mechanism, template, length, key);
}

static CK_RV generate_pair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *template, CK_ULONG length,
                           CK_ATTRIBUTE *other, CK_ULONG other_length, CK_OBJECT_HANDLE *public, CK_OBJECT_HANDLE *private)
{
    ENTER("C_GenerateKeyPair");
    return real->C_GenerateKeyPair(session, mechanism, template, length, other, other_length, public, private);
}

static CK_RV destroy_object(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    ENTER("C_DestroyObject");
    return real->C_DestroyObject(session, object);
}

static CK_RV encrypt_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    ENTER("C_EncryptInit");
    if (limit("NO_ECB") && mechanism->mechanism == CKM_AES_ECB)
        return limit("NO_ECB");
    if (limit("NO_CBC") && mechanism->mechanism == CKM_AES_CBC)
        return limit("NO_CBC");
    encryptions++;
    long every = limit("LOGOUT_EVERY");
    if (every && encryptions % every == 0)
        real->C_Logout(session);
    every = limit("LOSE_SESSIONS_EVERY");
    if (every && encryptions % every == 0) {
        CK_SESSION_INFO info;
        if (!real->C_GetSessionInfo(session, &info) && !real->C_CloseAllSessions(info.slotID))
            sessions = 0;
    }
    every = limit("FAIL_EVERY");
    if (every && encryptions % every == 0)
        return CKR_DEVICE_ERROR;
    return real->C_EncryptInit(session, mechanism, key);
}

static CK_RV encrypt(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *answer, CK_ULONG *answer_length)
{
    ENTER("C_Encrypt");
    long most = limit("BYTES");
    if (most && (long)length > most)
        return limit("BYTES_CODE") ? limit("BYTES_CODE") : CKR_DATA_LEN_RANGE; /* the operation stays active */
    if (answer)
        usleep(limit("SLOW_MS") * 1000);
    return real->C_Encrypt(session, data, length, answer, answer_length);
}

static CK_RV get_mechanism_list(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *length)
{
    ENTER("C_GetMechanismList");
    return real->C_GetMechanismList(slot_behind(slot), list, length);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
    if (!real) {
        Dl_info self;
        CK_RV (*get)(CK_FUNCTION_LIST **);
        dladdr((void *)C_GetFunctionList, &self);
        strncpy(here, self.dli_fname, sizeof here - 1);
        void *library = dlopen(beside("target"), RTLD_NOW | RTLD_LOCAL);
        *(void **)&get = library ? dlsym(library, "C_GetFunctionList") : NULL;
        if (!get || get(&real))
            return CKR_GENERAL_ERROR;
        shim = *real;
        shim.C_GetFunctionList = C_GetFunctionList;
        shim.C_Initialize = initialize;
        shim.C_Finalize = finalize;
        shim.C_GetSlotList = get_slot_list;
        shim.C_GetTokenInfo = get_token_info;
        shim.C_GetMechanismList = get_mechanism_list;
        shim.C_OpenSession = open_session;
        shim.C_CloseSession = close_session;
        shim.C_GetSessionInfo = get_session_info;
        shim.C_Login = login;
        shim.C_FindObjectsInit = find_objects_init;
        shim.C_FindObjects = find_objects;
        shim.C_GetAttributeValue = get_attributes;
        shim.C_GenerateKey = generate_key;
        shim.C_GenerateKeyPair = generate_pair;
        shim.C_DestroyObject = destroy_object;
        shim.C_EncryptInit = encrypt_init;
        shim.C_Encrypt = encrypt;
#define ABSENT(function) if (limit("NULL_" #function)) shim.function = NULL
        ABSENT(C_Initialize); ABSENT(C_Finalize); ABSENT(C_GetInfo); ABSENT(C_GetSlotList); ABSENT(C_GetTokenInfo);
        ABSENT(C_GetMechanismList); ABSENT(C_OpenSession); ABSENT(C_CloseSession); ABSENT(C_GetSessionInfo);
        ABSENT(C_Login); ABSENT(C_DestroyObject); ABSENT(C_GetAttributeValue); ABSENT(C_FindObjectsInit);
        ABSENT(C_FindObjects); ABSENT(C_FindObjectsFinal); ABSENT(C_EncryptInit); ABSENT(C_Encrypt);
        ABSENT(C_SignInit); ABSENT(C_Sign); ABSENT(C_GenerateKey); ABSENT(C_GenerateKeyPair);
        ABSENT(C_WaitForSlotEvent);
    }
    *list = limit("NULL_LIST") ? NULL : &shim;
    return CKR_OK;
}
