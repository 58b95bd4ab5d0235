// Command check looks at the files of the deployments in examples: see
// examples/check.sh. It is a module of its own, so that the plugin does not depend
// on what it needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/hashicorp/consul-template/config"
	vault "github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/hcl"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

func main() {
	commands := map[string]func(args []string) error{
		"dockerfile": dockerfile, "context": buildContext, "compose": compose, "vault-agent": vaultAgent,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: check dockerfile|context|compose|vault-agent ARGUMENTS")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", strings.Join(os.Args[1:], " "), err)
		os.Exit(1)
	}
}

// dockerfile lints a Dockerfile as `docker build --check` does, without asking a
// registry for its base images.
func dockerfile(args []string) error {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	source := llb.NewSourceMap(nil, args[0], "Dockerfile", text)
	source.Definition = new(llb.Definition)
	results, err := dockerfile2llb.DockerfileLint(context.Background(), text, dockerfile2llb.ConvertOpt{
		MetaResolver: anyImage{},
		SourceMap:    source,
	})
	if err != nil {
		return err
	}
	if results.Error != nil {
		return errors.New(results.Error.Message)
	}
	for _, warning := range results.Warnings {
		err = errors.Join(err, fmt.Errorf("line %d: %s (%s)", line(warning.Location), warning.Detail, warning.RuleName))
	}
	return err
}

func line(location *pb.Location) int32 {
	if location == nil || len(location.Ranges) == 0 {
		return 0
	}
	return location.Ranges[0].Start.Line
}

// anyImage knows every image, and nothing of it.
type anyImage struct{}

func (anyImage) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, digest.FromString(ref), []byte(`{"architecture":"amd64","os":"linux","config":{}}`), nil
}

// buildContext copies what a .dockerignore leaves of a directory, as an engine gets
// it: check context DOCKERIGNORE FROM TO.
func buildContext(args []string) error {
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		return err
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		return err
	}
	from, to := args[1], args[2]
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			if err == nil && entry.Name() == ".git" {
				return filepath.SkipDir
			}
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if skip, err := ignored.MatchesOrParentMatches(name); err != nil || skip {
			return err
		}
		return copyFile(path, filepath.Join(to, name))
	})
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// compose loads files as Compose does: by its schema, and with all references.
func compose(args []string) error {
	for _, path := range args {
		options, err := cli.NewProjectOptions([]string{path}, cli.WithResolvedPaths(true), cli.WithConsistency(true))
		if err != nil {
			return err
		}
		project, err := options.LoadProject(context.Background())
		if err != nil {
			return err
		}
		for name, service := range project.Services {
			if service.Build != nil && service.Build.DockerfileInline == "" {
				if _, err := os.Stat(filepath.Join(service.Build.Context, service.Build.Dockerfile)); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			for _, volume := range service.Volumes {
				if volume.Type == "bind" {
					if _, err := os.Stat(volume.Source); err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
				}
			}
		}
	}
	return nil
}

// vaultAgent reads the config of a Vault Agent, and renders its templates with what
// Vault would answer, into a directory: check vault-agent FILE TO.
func vaultAgent(args []string) error {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var tree map[string]any
	if err := hcl.Decode(&tree, string(text)); err != nil {
		return err
	}
	known := map[string]bool{"vault": true, "auto_auth": true, "template_config": true, "template": true, "pid_file": true}
	for name := range tree {
		if !known[name] {
			return fmt.Errorf("unknown stanza %s", name)
		}
	}
	templates, ok := tree["template"].([]map[string]any)
	if !ok {
		return errors.New("no templates")
	}
	parsed, err := config.Parse(onlyTemplates(string(text)))
	if err != nil {
		return err
	}
	if len(*parsed.Templates) != len(templates) {
		return fmt.Errorf("%d templates of %d were read", len(*parsed.Templates), len(templates))
	}
	parsed.Finalize()
	for _, c := range *parsed.Templates {
		if *c.ErrMissingKey != true {
			return fmt.Errorf("%s: no error_on_missing_key", *c.Destination)
		}
		t, err := template.NewTemplate(&template.NewTemplateInput{Contents: *c.Contents, ErrMissingKey: true})
		if err != nil {
			return err
		}
		brain := template.NewBrain()
		for range 2 { // the first finds out what it depends on
			result, err := t.Execute(&template.ExecuteInput{Brain: brain, Env: os.Environ()})
			if err != nil {
				return err
			}
			for _, d := range result.Used.List() {
				brain.Remember(d, &vault.Secret{Data: map[string]any{"data": map[string]any{
					"app_id": "id-of-the-test", "app_token": "token-of-the-test", "key": "key-of-the-test-for-a-caller",
				}}})
			}
			if len(result.Missing.List()) == 0 {
				to := filepath.Join(args[1], filepath.Base(*c.Destination))
				if err := os.WriteFile(to, result.Output, *c.Perms); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// onlyTemplates drops the stanzas that are the agent's own.
func onlyTemplates(text string) string {
	_, rest, _ := strings.Cut(text, "\ntemplate {")
	return "template {" + rest
}
