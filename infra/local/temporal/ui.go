package temporal

import (
	"context"
	"fmt"
	"net"
	"net/http"

	uiserver "github.com/temporalio/ui-server/v2/server"
	uiconfig "github.com/temporalio/ui-server/v2/server/config"
	uioptions "github.com/temporalio/ui-server/v2/server/server_options"
)

// webUI is the running web UI of one server.
type webUI struct {
	url    string
	server *uiserver.Server
	done   chan struct{} // closed when the server's goroutine has ended
}

// startUI serves the web UI on addr, which is free, and returns when it answers.
func startUI(ctx context.Context, addr *net.TCPAddr, frontend, namespace string) (*webUI, error) {
	ui := &webUI{
		url: "http://" + dialable(addr),
		server: uiserver.NewServer(uioptions.WithConfigProvider(&uiconfig.Config{
			TemporalGRPCAddress: frontend,
			Host:                addr.IP.String(),
			Port:                addr.Port,
			DefaultNamespace:    namespace,
			EnableUI:            true,
			DisableNewsFetch:    true, // nothing is fetched from outside this machine
			HideLogs:            true,
			CORS:                uiconfig.CORS{CookieInsecure: true}, // served over plain HTTP
		})),
		done: make(chan struct{}),
	}
	go ui.serve()
	if err := poll(ctx, ui.answers); err != nil {
		ui.close()
		return nil, fmt.Errorf("web UI on %s: %w", ui.url, err)
	}
	return ui, nil
}

// serve returns when close was called. Start has no other error to return: it ends the process when it can't listen.
func (u *webUI) serve() {
	defer close(u.done)
	_ = u.server.Start()
}

func (u *webUI) answers(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("answers %s", response.Status)
	}
	return nil
}

func (u *webUI) close() {
	u.server.Stop()
	<-u.done
}
