package tokenprovider

import (
	"net/url"
	"slices"
	"strings"
)

// CredentialPaths returns the paths of those endpoints that share host and port
// with the API at apiURL, as [API.CredentialPaths] has them. Queries do not count: all of
// a path is an endpoint's.
func CredentialPaths(apiURL string, endpoints []Endpoint) []string {
	api, err := url.Parse(apiURL)
	if err != nil {
		return nil
	}
	var paths []string
	for _, endpoint := range endpoints {
		u, err := url.Parse(endpoint.URL)
		if err != nil || !strings.EqualFold(hostname(u), hostname(api)) || port(u) != port(api) {
			continue
		}
		path := strings.ToLower(strings.TrimRight(u.Path, "/")) + "/"
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

func hostname(u *url.URL) string { return strings.TrimSuffix(u.Hostname(), ".") }

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
