package manager

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/role"
)

const (
	// headerKey carries the API key.
	headerKey = "x-api-key"

	// queryExisting asks for the connection string of a device that must exist already. Hosts ask so: a device that is
	// created by who merely reconnects would outlive its job, which has deregistered it.
	queryExisting = "existing"

	apiTimeout = 25 * time.Second
)

// api answers GET and POST of /negotiate/{id} and /deregister/{id}.
type api struct {
	registry registry
	key      [sha256.Size]byte // hashed, so that comparing takes the same time for keys of any length
	log      *slog.Logger
}

func newAPI(r registry, key string, log *slog.Logger) *api {
	return &api{registry: r, key: sha256.Sum256([]byte(key)), log: log}
}

func (a *api) routes(mux *http.ServeMux) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.Handle(method+" /negotiate/{id}", a.guarded(a.negotiate))
		mux.Handle(method+" /deregister/{id}", a.guarded(a.deregister))
	}
}

// guarded lets through requests with the right key and a device ID that can be.
func (a *api) guarded(next func(context.Context, http.ResponseWriter, *http.Request, string) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := sha256.Sum256([]byte(r.Header.Get(headerKey)))
		if subtle.ConstantTimeCompare(given[:], a.key[:]) != 1 {
			role.Error(w, http.StatusUnauthorized, "the header "+headerKey+" is missing or wrong")
			return
		}
		id := r.PathValue("id")
		if err := job.ValidateDeviceID(id); err != nil {
			role.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
		defer cancel()
		if err := next(ctx, w, r, id); err != nil {
			a.fail(w, id, err)
		}
	})
}

// negotiate answers with the connection string of a device, which it creates first unless it must exist already.
func (a *api) negotiate(ctx context.Context, w http.ResponseWriter, r *http.Request, id string) error {
	existing := false
	if given := r.URL.Query().Get(queryExisting); given != "" {
		var err error
		if existing, err = strconv.ParseBool(given); err != nil {
			return &job.Error{Kind: job.ErrInvalid, Err: errors.New("the query " + queryExisting + " is neither true nor false")}
		}
	}
	if !existing {
		if _, err := a.registry.EnsureDevice(ctx, id); err != nil {
			return err
		}
	}
	connectionString, err := a.registry.DeviceConnectionString(ctx, id)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	role.JSON(w, http.StatusOK, map[string]string{"url": connectionString})
	return nil
}

func (a *api) deregister(ctx context.Context, w http.ResponseWriter, _ *http.Request, id string) error {
	existed, err := a.registry.DeleteDevice(ctx, id)
	if err != nil {
		return err
	}
	if !existed {
		return &job.Error{Kind: job.ErrNotFound, Err: errors.New("no such device")}
	}
	role.JSON(w, http.StatusOK, map[string]string{"deviceId": id})
	return nil
}

// fail answers with what an error means to the caller. What the hub says in detail is for the log: the caller may not be
// the one who may read it.
func (a *api) fail(w http.ResponseWriter, deviceID string, err error) {
	var classified *job.Error
	errors.As(err, &classified)
	switch {
	case errors.Is(err, job.ErrInvalid):
		role.Error(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, job.ErrNotFound):
		role.Error(w, http.StatusNotFound, "there is no device "+strconv.Quote(deviceID))
	case errors.Is(err, job.ErrThrottled) && classified != nil:
		seconds := max(1, int(math.Ceil(classified.RetryAfter.Seconds())))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		role.Error(w, http.StatusTooManyRequests, "the hub takes no more for now, try again later")
	default:
		a.log.Warn("the hub could not be asked", "device", deviceID, "error", err)
		role.Error(w, http.StatusBadGateway, "the hub could not be asked: "+job.ErrorType(err))
	}
}
