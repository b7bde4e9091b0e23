package gates

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/argoproj/argo-rollouts/metricproviders/webmetric"
	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	template "github.com/argoproj/argo-rollouts/utils/template"
	"github.com/sirupsen/logrus"
)

// An analysis is one run of an AnalysisTemplate with one metric. Measurements are Argo's own: its provider asks, and its rules evaluate.
type analysis struct {
	t        *testing.T
	metric   v1alpha1.Metric
	provider *webmetric.Provider

	count, consecutiveSuccess, inconclusive, failed, consecutiveError int
	last                                                              v1alpha1.Measurement
}

// newAnalysis resolves the arguments, the secret's too, as the controller does.
func newAnalysis(t *testing.T, of v1alpha1.AnalysisTemplate, overrides map[string]string) *analysis {
	t.Helper()
	args := of.Spec.Args
	for i := range args {
		if value, ok := overrides[args[i].Name]; ok {
			args[i].Value, args[i].ValueFrom = &value, nil
		}
	}
	if len(of.Spec.Metrics) != 1 {
		t.Fatalf("%s has %d metrics", of.Name, len(of.Spec.Metrics))
	}
	text, err := json.Marshal(of.Spec.Metrics[0])
	must(t, err)
	resolved, err := template.ResolveQuotedArgs(string(text), args)
	must(t, err)
	a := &analysis{t: t}
	must(t, json.Unmarshal([]byte(resolved), &a.metric))
	client, err := webmetric.NewWebMetricHttpClient(a.metric)
	must(t, err)
	parser, err := webmetric.NewWebMetricJsonParser(a.metric)
	must(t, err)
	a.provider = webmetric.NewWebMetricProvider(*logrus.NewEntry(logrus.New()), client, parser)
	return a
}

// measure takes one measurement, and says what has become of the metric: the limits of the controller's assessment, which its module
// does not export.
func (a *analysis) measure() v1alpha1.AnalysisPhase {
	a.last = a.provider.Run(&v1alpha1.AnalysisRun{}, a.metric)
	switch a.last.Phase {
	case v1alpha1.AnalysisPhaseError:
		a.consecutiveError++
		a.consecutiveSuccess = 0
	case v1alpha1.AnalysisPhaseFailed:
		a.failed++
		a.consecutiveSuccess = 0
	case v1alpha1.AnalysisPhaseInconclusive:
		a.inconclusive++
		a.consecutiveSuccess = 0
	case v1alpha1.AnalysisPhaseSuccessful:
		a.consecutiveSuccess++
	}
	if a.last.Phase != v1alpha1.AnalysisPhaseError {
		a.count++
		a.consecutiveError = 0
	}
	limit := func(value interface{ IntValue() int }, isSet bool, otherwise int) int {
		if isSet {
			return value.IntValue()
		}
		return otherwise
	}
	m := a.metric
	errors := 4
	if m.ConsecutiveErrorLimit != nil {
		errors = m.ConsecutiveErrorLimit.IntValue()
	}
	successes := limit(m.ConsecutiveSuccessLimit, m.ConsecutiveSuccessLimit != nil, 0)
	switch {
	case a.consecutiveError > errors:
		return v1alpha1.AnalysisPhaseError
	case a.inconclusive > limit(m.InconclusiveLimit, m.InconclusiveLimit != nil, 0):
		return v1alpha1.AnalysisPhaseInconclusive
	case a.failed > limit(m.FailureLimit, m.FailureLimit != nil, 0):
		return v1alpha1.AnalysisPhaseFailed
	case successes > 0 && a.consecutiveSuccess >= successes:
		return v1alpha1.AnalysisPhaseSuccessful
	case m.Count != nil && a.count >= m.Count.IntValue() && successes > 0:
		return v1alpha1.AnalysisPhaseInconclusive
	case m.Count != nil && a.count >= m.Count.IntValue():
		return v1alpha1.AnalysisPhaseSuccessful
	}
	return v1alpha1.AnalysisPhaseRunning
}

// expect measures once, and compares.
func (a *analysis) expect(when string, measurement, phase v1alpha1.AnalysisPhase) {
	a.t.Helper()
	got := a.measure()
	if a.last.Phase != measurement || got != phase {
		a.t.Fatalf("%s: %s was measured %s, and is %s; wanted %s and %s: %s %s",
			when, a.metric.Name, a.last.Phase, got, measurement, phase, a.last.Value, a.last.Message)
	}
}

// templates are the AnalysisTemplates of a text, by the end of their names.
func templates(t *testing.T, text []byte) (watch, step v1alpha1.AnalysisTemplate) {
	for _, document := range documents(text) {
		var made v1alpha1.AnalysisTemplate
		strictly(t, document, &made)
		switch {
		case strings.HasSuffix(made.Name, "-watch"):
			watch = made
		case strings.HasSuffix(made.Name, "-go"):
			step = made
		default:
			t.Fatalf("what is %s?", made.Name)
		}
	}
	return watch, step
}
