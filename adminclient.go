package egress

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// adminFlags are those of Caddy's own commands that talk to a running Caddy.
type adminFlags struct {
	config, adapter, address string
	json                     bool
}

func (f *adminFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "Configuration file to use to parse the admin address, if --address is not used; no file is used unless it is named")
	cmd.Flags().StringVarP(&f.adapter, "adapter", "a", "", "Name of config adapter to apply to the configuration (if --config is used)")
	cmd.Flags().StringVarP(&f.address, "address", "", "", "The address to use to reach the admin API endpoint, if not the default: host:port, or unix//path for a unix socket")
	cmd.Flags().BoolVar(&f.json, "json", false, "Print JSON instead of a table")
	cmd.SilenceUsage = true
}

// request asks a running Caddy, and returns the body of its answer. Caddy logs who
// asked, by the User-Agent.
func (f *adminFlags) request(method, uri string) ([]byte, error) {
	address, err := f.adminAddress()
	if err != nil {
		return nil, err
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, uri, http.Header{"User-Agent": {userAgent()}}, nil)
	if err != nil {
		return nil, adminRequestError(err)
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// adminAddress returns where the admin API is.
func (f *adminFlags) adminAddress() (string, error) {
	switch {
	case f.address != "":
		return f.address, checkAdminAddress(f.address)
	case f.config == "":
		return caddy.DefaultAdminListen, nil
	}
	adapted, _, err := loadConfig(f.config, f.adapter)
	if err != nil {
		return "", err
	}
	var config struct {
		Admin caddy.AdminConfig `json:"admin"`
	}
	if err := json.Unmarshal(adapted, &config); err != nil {
		return "", fmt.Errorf("reading the admin address in %s: %w", f.config, err)
	}
	if config.Admin.Disabled { // the default address may be that of another Caddy
		return "", fmt.Errorf("%s turns the admin API off, so a Caddy that runs it cannot be asked; give its global option admin an address", f.config)
	}
	return cmp.Or(config.Admin.Listen, caddy.DefaultAdminListen), nil
}

// checkAdminAddress refuses what is not the address of one listener, such as a URL, or
// the path of a socket alone.
func checkAdminAddress(address string) error {
	parsed, err := caddy.ParseNetworkAddress(address)
	switch {
	case err != nil:
	case parsed.IsUnixNetwork(), parsed.IsFdNetwork():
		return nil
	case strings.HasPrefix(parsed.Network, "tcp") && !strings.Contains(parsed.Host, "/") && parsed.StartPort > 0 && parsed.PortRangeSize() == 1:
		return nil
	}
	return fmt.Errorf("--address: %q is not the address of an admin API; give host:port, or unix//path for a unix socket, as in unix//run/caddy/admin.sock", address)
}

// adminRequestError is err, a failed request to the admin API, with what to do. Caddy
// returns it as text only.
func adminRequestError(err error) error {
	status, answered := strings.CutPrefix(err.Error(), "caddy responded with error: HTTP ")
	if !answered {
		return fmt.Errorf("%w; is Caddy running there? give its admin address by --address, or its config by --config", err)
	}
	_, body, _ := strings.Cut(status, ": ")
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal([]byte(body), &answer) != nil || answer.Error == "" {
		return err
	}
	return errors.New(forTerminal(answer.Error))
}

// userAgent says who runs the command, as far as the system knows.
func userAgent() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	host, _ := os.Hostname()
	return fmt.Sprintf("caddy-egress (%s@%s)", name, host)
}

// names returns the credentials in use, for an error.
func (f *adminFlags) names() (string, error) {
	answer, err := f.request(http.MethodGet, adminPath)
	if err != nil {
		return "", err
	}
	var all []CredentialStatus
	if err := json.Unmarshal(answer, &all); err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	if len(all) == 0 {
		return noneInUse, nil
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Credential)
	}
	return listNames(names), nil
}
