package gates

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	flagger "github.com/fluxcd/flagger/pkg/apis/flagger/v1beta1"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

var separator = regexp.MustCompile(`(?m)^---\n`)

// documents are those of a YAML stream that hold more than comments.
func documents(text []byte) (all [][]byte) {
	for _, document := range separator.Split(string(text), -1) {
		var value any
		if err := yaml.Unmarshal([]byte(document), &value); err != nil || value != nil {
			all = append(all, []byte(document))
		}
	}
	return all
}

// strictly reads a document into the product's own type, and knows no other field.
func strictly(t *testing.T, document []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(document, into); err != nil {
		t.Fatalf("%v\n%s", err, document)
	}
}

// schemas are those of the CustomResourceDefinitions that the product's module ships, by kind.
func schemas(t *testing.T, module string, files ...string) map[string]*jsonschema.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	must(t, err)
	all := map[string]*jsonschema.Schema{}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
		must(t, err)
		for _, document := range documents(text) {
			var crd struct {
				Spec struct {
					Names    struct{ Kind string }
					Versions []struct {
						Schema struct{ OpenAPIV3Schema any }
					}
				}
			}
			must(t, yaml.Unmarshal(document, &crd))
			kind := crd.Spec.Names.Kind
			compiler := jsonschema.NewCompiler()
			must(t, compiler.AddResource(kind+".json", crd.Spec.Versions[0].Schema.OpenAPIV3Schema))
			schema, err := compiler.Compile(kind + ".json")
			must(t, err)
			all[kind] = schema
		}
	}
	return all
}

// Every sample builds, has no field that the product does not know, and is what its definition accepts.
func TestTheSamplesAreAccepted(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("no kubectl here: the samples are not built")
	}
	known := schemas(t, "github.com/argoproj/argo-rollouts", "manifests/crds/rollout-crd.yaml", "manifests/crds/analysis-template-crd.yaml")
	for kind, schema := range schemas(t, "github.com/fluxcd/flagger", "artifacts/flagger/crd.yaml") {
		known[kind] = schema
	}
	types := map[string]func() any{
		"Rollout":          func() any { return &v1alpha1.Rollout{} },
		"AnalysisTemplate": func() any { return &v1alpha1.AnalysisTemplate{} },
		"Canary":           func() any { return &flagger.Canary{} },
	}
	seen := map[string]int{}
	for _, sample := range []string{"argo-rollouts", "flagger"} {
		var complaints bytes.Buffer
		build := exec.Command(kubectl, "kustomize", "../../deploy/"+sample)
		build.Stderr = &complaints
		text, err := build.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", sample, err, complaints.String())
		}
		for _, document := range documents(text) {
			var head struct{ Kind string }
			must(t, yaml.Unmarshal(document, &head))
			seen[head.Kind]++
			if made, ok := types[head.Kind]; ok {
				strictly(t, document, made())
				asJSON, err := yaml.YAMLToJSON(document)
				must(t, err)
				value, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
				must(t, err)
				if err := known[head.Kind].Validate(value); err != nil {
					t.Errorf("%s: %v", sample, err)
				}
			}
		}
	}
	for kind, n := range map[string]int{"Rollout": 1, "AnalysisTemplate": 2, "Canary": 1} {
		if seen[kind] != n {
			t.Errorf("%d of %s, wanted %d: %v", seen[kind], kind, n, seen)
		}
	}
	var canary flagger.Canary
	text, err := exec.Command(kubectl, "kustomize", "../../deploy/flagger").Output()
	must(t, err)
	for _, document := range documents(text) {
		if bytes.Contains(document, []byte("kind: Canary")) {
			strictly(t, document, &canary)
		}
	}
	if hooks := canary.Spec.Analysis.Webhooks; len(hooks) != 3 {
		shown, _ := json.Marshal(hooks)
		t.Errorf("the patch brings three webhooks: %s", shown)
	}
}
