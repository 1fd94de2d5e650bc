package e2e

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hubjobs/hubjobs/job"
)

// history returns everything that a workflow's history says, with payloads as they are stored, base64 undone.
func (s *stack) history(t *testing.T, workflowID string) []byte {
	t.Helper()
	var all bytes.Buffer
	iter := s.temporal.GetWorkflowHistory(within(t), workflowID, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for iter.HasNext() {
		event, err := iter.Next()
		require.NoError(t, err)
		raw, err := protojson.Marshal(event)
		require.NoError(t, err)
		all.Write(raw)
		for _, encoded := range regexp.MustCompile(`"data":\s*"([^"]*)"`).FindAllSubmatch(raw, -1) {
			payload, err := base64.StdEncoding.DecodeString(string(encoded[1]))
			require.NoError(t, err)
			all.Write(payload)
		}
	}
	return all.Bytes()
}

func TestNoSecretIsInAnyHistoryOrLog(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	id := "job-e2e-secrets"
	p := spawn(t, s.env, nil, "starter", "run", "--output", "json", "--id", id, "--step-time", "300ms")
	p.until(p.out, "first update", contains(`"event":"update"`))
	set := settings(t, s.EnvFile())
	key, err := os.ReadFile(set["HUBJOBS_API_KEY_FILE"])
	require.NoError(t, err)
	apiKey := strings.TrimSpace(string(key))
	secrets := map[string]string{"API key": apiKey}
	for _, name := range []string{"IOTHUB_CONNECTION_STRING", "SERVICEBUS_CONNECTION_STRING", "EVENTHUB_CONNECTION_STRING"} {
		secrets[name] = keyOf(t, set[name])
	}
	for _, device := range []string{job.DeviceID(job.RoleScheduler, id), job.DeviceID(job.RoleSolver, id)} {
		secrets[device] = keyOf(t, deviceConnectionString(t, set["HUBJOBS_MANAGER_URL"], apiKey, device))
	}
	require.Zero(t, p.wait(), p.errs.String())

	seen := map[string][]byte{
		"history of the job":   s.history(t, id),
		"history of its solve": s.history(t, job.SolveWorkflowID(id)),
		"output":               []byte(p.out.String() + p.errs.String()),
	}
	log, err := os.ReadFile(filepath.Join(s.dir, "hubjobs.log"))
	require.NoError(t, err)
	seen["log"] = log
	require.Contains(t, string(seen["history of the job"]), job.DeviceID(job.RoleSolver, id), "payloads are not decoded")
	for where, text := range seen {
		for what, secret := range secrets {
			require.NotEmpty(t, secret, what)
			require.False(t, bytes.Contains(text, []byte(secret)), "the %s holds the secret of %s", where, what)
		}
		require.False(t, bytes.Contains(text, []byte("SharedAccessSignature")), "the %s holds a token", where)
		require.False(t, bytes.Contains(text, []byte("SharedAccessKey=")), "the %s holds a connection string", where)
	}
}

// keyOf returns the key of a connection string.
func keyOf(t *testing.T, connectionString string) string {
	t.Helper()
	for _, part := range strings.Split(connectionString, ";") {
		if key, ok := strings.CutPrefix(part, "SharedAccessKey="); ok {
			return key
		}
	}
	t.Fatal("no key in a connection string")
	return ""
}

// deviceConnectionString asks the manager, as a device's host does.
func deviceConnectionString(t *testing.T, manager, apiKey, device string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, manager+"/negotiate/"+device, nil)
	require.NoError(t, err)
	req.Header.Set("x-api-key", apiKey)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	require.NoError(t, err)
	return decode[struct {
		URL string `json:"url"`
	}](t, body.String()).URL
}
