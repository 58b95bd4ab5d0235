package egress

import (
	"slices"
	"testing"
)

func TestLogsWithKeys(t *testing.T) {
	headers := []string{"X-Api-Key", "X-App-Token"}
	const both = `"encoder":{"format":"filter","fields":{"request>headers>X-Api-Key":{"filter":"delete"},"request>headers>X-App-Token":{"filter":"delete"}}}`
	for config, want := range map[string][]string{
		`{}`:                            {"default shows X-Api-Key, X-App-Token"},
		`{"logging":{"logs":{}}}`:       {"default shows X-Api-Key, X-App-Token"},
		`{"logging":{"logs":{"x":{}}}}`: {"default shows X-Api-Key, X-App-Token", "x shows X-Api-Key, X-App-Token"},
		`{"logging":{"logs":{"default":{` + both + `}}}}`:                                                                             nil,
		`{"logging":{"logs":{"default":{` + both + `},"log0":{"include":["http.log.access.log0"]}}}}`:                                 {"log0 shows X-Api-Key, X-App-Token"},
		`{"logging":{"logs":{"default":{` + both + `},"a":{"include":["admin.api"]},"d":{"writer":{"output":"discard"}}}}}`:           nil,
		`{"logging":{"logs":{"default":{"encoder":{"format":"filter","fields":{"request>headers>X-Api-Key":{"filter":"delete"}}}}}}}`: {"default shows X-App-Token"},
		`{"logging":{"logs":{"default":{"encoder":{"format":"filter","fields":{"request>headers":{"filter":"delete"}}}}}}}`:           nil,
		`{"apps":{"http":{"servers":{"s":{"logs":{"should_log_credentials":true}}}}},"logging":{"logs":{"default":{` + both + `}}}}`:  {"default shows Authorization"},
		`{"logging":{"logs":{"default":{"encoder":{"format":"json"}}}}}`:                                                              {"default shows X-Api-Key, X-App-Token"},
	} {
		got, err := logsWithKeys([]byte(config), headers)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", config, got, err, want)
		}
	}
	if _, err := logsWithKeys([]byte(`{"logging":{"logs":[]}}`), headers); err == nil {
		t.Error("a config of another form was read")
	}
}
