package egress

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Caddy's logs of requests show all headers but those that hold credentials by
// their definition (Authorization, Cookie): whatever else a caller sends its key
// in. A request is encoded for them before any handler sees it, so that only the
// configuration of a log can keep a key out.

// warnOfLogsWithKeys warns of the logs of a config that show callers' keys.
func warnOfLogsWithKeys(w io.Writer, config []byte) error {
	app, routes, err := routesOf(config)
	if err != nil {
		return err
	}
	headers := keyHeadersOf(app, routes)
	if headers == nil {
		return nil
	}
	logs, err := logsWithKeys(config, headers)
	for _, log := range logs {
		fmt.Fprintf(w, "warning: the log %s, in which callers may send keys; have it delete them by `format filter`\n", forTerminal(log))
	}
	return err
}

// logsWithKeys returns the logs of a config that show headers in which callers may
// send keys, as `<log> shows <headers>`.
func logsWithKeys(config []byte, headers []string) ([]string, error) {
	var parsed struct {
		Logging struct {
			Logs map[string]*struct {
				Include []string `json:"include"`
				Writer  struct {
					Output string `json:"output"`
				} `json:"writer"`
				Encoder struct {
					Format string                     `json:"format"`
					Fields map[string]json.RawMessage `json:"fields"`
				} `json:"encoder"`
			} `json:"logs"`
		} `json:"logging"`
		Apps struct {
			HTTP struct {
				Servers map[string]*struct {
					Logs struct {
						Credentials bool `json:"should_log_credentials"`
					} `json:"logs"`
				} `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, fmt.Errorf("reading the logs of the config: %w", err)
	}
	for _, server := range parsed.Apps.HTTP.Servers {
		if server != nil && server.Logs.Credentials { // log_credentials in a Caddyfile
			headers = append([]string{"Authorization"}, headers...)
			break
		}
	}
	logs := parsed.Logging.Logs
	var found []string
	if logs["default"] == nil {
		found = append(found, "default shows "+strings.Join(headers, ", "))
	}
	ofRequests := func(logger string) bool { return strings.HasPrefix(logger, "http") }
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		log := logs[name]
		if log == nil || log.Writer.Output == "discard" || len(log.Include) > 0 && !slices.ContainsFunc(log.Include, ofRequests) {
			continue
		}
		shown := slices.DeleteFunc(slices.Clone(headers), func(header string) bool {
			_, all := log.Encoder.Fields["request>headers"]
			_, one := log.Encoder.Fields["request>headers>"+header]
			return log.Encoder.Format == "filter" && (all || one)
		})
		if len(shown) > 0 {
			found = append(found, name+" shows "+strings.Join(shown, ", "))
		}
	}
	return found, nil
}

// keyHeadersOf returns the headers, besides Authorization, in which callers of a
// config may send keys; nil where no caller has one.
func keyHeadersOf(app *App, routes []configRoute) []string {
	if !slices.ContainsFunc(slices.Collect(maps.Values(app.Callers)), func(c *Caller) bool { return c != nil && len(c.Key) > 0 }) {
		return nil
	}
	headers := []string{"X-Api-Key"}
	for _, route := range routes {
		var t struct {
			Name     string          `json:"credential"`
			Provider json.RawMessage `json:"provider"`
		}
		_ = json.Unmarshal(route.transport, &t) // accessOf says what is wrong with it
		if credential := app.Credentials[t.Name]; credential != nil {
			t.Provider = credential.ProviderRaw
		}
		if provider, err := unprovisioned(t.Provider); err == nil {
			headers = append(headers, provider.API().KeyHeaders...)
		}
	}
	slices.Sort(headers)
	return slices.Compact(headers)
}
