package gates

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	flagger "github.com/fluxcd/flagger/pkg/apis/flagger/v1beta1"
	"github.com/santhosh-tekuri/jsonschema/v6"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
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
		"Role":             func() any { return &rbac.Role{} },
		"RoleBinding":      func() any { return &rbac.RoleBinding{} },
		"ServiceAccount":   func() any { return &core.ServiceAccount{} },
		"Service":          func() any { return &core.Service{} },
		"ConfigMap":        func() any { return &core.ConfigMap{} },
		"StatefulSet":      func() any { return &apps.StatefulSet{} },
		"NetworkPolicy":    func() any { return &networking.NetworkPolicy{} },
	}
	seen := map[string]int{}
	for _, sample := range []string{"argo-rollouts", "flagger", "kustomize/base", "kustomize/argo-rollouts"} {
		for _, document := range built(t, kubectl, sample) {
			var head struct{ Kind string }
			must(t, yaml.Unmarshal(document, &head))
			seen[head.Kind]++
			made, ok := types[head.Kind]
			if !ok {
				t.Fatalf("%s: nobody holds a %s against its type", sample, head.Kind)
			}
			strictly(t, document, made())
			schema, ok := known[head.Kind]
			if !ok {
				continue // a kind of Kubernetes itself: its type is its schema
			}
			asJSON, err := yaml.YAMLToJSON(document)
			must(t, err)
			value, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
			must(t, err)
			if err := schema.Validate(value); err != nil {
				t.Errorf("%s: %v", sample, err)
			}
		}
	}
	for kind, n := range map[string]int{"Rollout": 1, "AnalysisTemplate": 2, "Canary": 1, "Role": 1, "RoleBinding": 1, "ServiceAccount": 1, "StatefulSet": 2} {
		if seen[kind] != n {
			t.Errorf("%d of %s, wanted %d: %v", seen[kind], kind, n, seen)
		}
	}
	var canary flagger.Canary
	find(t, built(t, kubectl, "flagger"), "Canary", &canary)
	if hooks := canary.Spec.Analysis.Webhooks; len(hooks) != 3 {
		shown, _ := json.Marshal(hooks)
		t.Errorf("the patch brings three webhooks: %s", shown)
	}
}

// built are the documents of a folder of deploy.
func built(t *testing.T, kubectl, sample string) [][]byte {
	t.Helper()
	var complaints bytes.Buffer
	build := exec.Command(kubectl, "kustomize", "../../deploy/"+sample)
	build.Stderr = &complaints
	text, err := build.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", sample, err, complaints.String())
	}
	return documents(text)
}

// find reads the first document of a kind.
func find(t *testing.T, all [][]byte, kind string, into any) {
	t.Helper()
	for _, document := range all {
		var head struct{ Kind string }
		must(t, yaml.Unmarshal(document, &head))
		if head.Kind == kind {
			strictly(t, document, into)
			return
		}
	}
	t.Fatalf("no %s", kind)
}

// The daemon's service account may send what the daemon sends to Argo Rollouts, to the Rollout of the sample, and nothing else.
func TestTheRoleAllowsWhatIsSentAndNoMore(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("no kubectl here: the samples are not built")
	}
	var role rbac.Role
	var binding rbac.RoleBinding
	var account core.ServiceAccount
	var set apps.StatefulSet
	var rollout v1alpha1.Rollout
	samples, daemon := built(t, kubectl, "argo-rollouts"), built(t, kubectl, "kustomize/argo-rollouts")
	find(t, samples, "Role", &role)
	find(t, samples, "RoleBinding", &binding)
	find(t, samples, "Rollout", &rollout)
	find(t, daemon, "ServiceAccount", &account)
	find(t, daemon, "StatefulSet", &set)

	sent, err := os.ReadFile("../delivery/requests.txt")
	must(t, err)
	asked := map[string]bool{}
	for _, request := range regexp.MustCompile(`(?m)^([A-Z]+) \S+/apis/argoproj\.io/v1alpha1/namespaces/shop/(\w+)/checkout(/\w+)?$`).FindAllStringSubmatch(string(sent), -1) {
		asked[strings.ToLower(request[1])+" "+request[2]+request[3]] = true
	}
	allowed := map[string]bool{}
	for _, rule := range role.Rules {
		for _, verb := range rule.Verbs {
			for _, resource := range rule.Resources {
				allowed[verb+" "+resource] = true
			}
		}
		if !slices.Equal(rule.APIGroups, []string{"argoproj.io"}) || !slices.Equal(rule.ResourceNames, []string{rollout.Name}) {
			t.Errorf("the rule is not about the sample's Rollout alone: %v", rule)
		}
	}
	if len(asked) == 0 || !maps.Equal(asked, allowed) {
		t.Errorf("sent: %v; allowed: %v", asked, allowed)
	}
	subject := rbac.Subject{Kind: "ServiceAccount", Name: account.Name, Namespace: account.Namespace}
	if binding.RoleRef.Name != role.Name || !slices.Equal(binding.Subjects, []rbac.Subject{subject}) {
		t.Errorf("%v is not bound to %v", subject, binding)
	}
	pod := set.Spec.Template.Spec
	if pod.ServiceAccountName != account.Name || pod.AutomountServiceAccountToken == nil || !*pod.AutomountServiceAccountToken {
		t.Errorf("the pod does not have the account's token: %s", pod.ServiceAccountName)
	}
}
