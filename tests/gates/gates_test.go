// Package gates plays Flagger and Argo Rollouts with a real daemon on live traffic: what they are told in the life of a canary, and what
// they make of it.
//
//	GUARDRAILD=target/debug/guardraild LOAD_TESTS=target/debug/load-tests go test ./tests/gates     (from the root: `.ci/run gates`)
package gates

import (
	"strings"
	"testing"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	flagger "github.com/fluxcd/flagger/pkg/apis/flagger/v1beta1"
)

const (
	failed       = v1alpha1.AnalysisPhaseFailed
	inconclusive = v1alpha1.AnalysisPhaseInconclusive
	running      = v1alpha1.AnalysisPhaseRunning
	successful   = v1alpha1.AnalysisPhaseSuccessful
	erroneous    = v1alpha1.AnalysisPhaseError
)

var eight = []flagger.HookType{
	flagger.ConfirmRolloutHook, flagger.PreRolloutHook, flagger.RolloutHook, flagger.ConfirmTrafficIncreaseHook,
	flagger.ConfirmPromotionHook, flagger.PostRolloutHook, flagger.RollbackHook, flagger.EventHook,
}

// A play is a daemon and all who ask it.
type play struct {
	*stage
	watch, step v1alpha1.AnalysisTemplate
	canary      flagger.Canary
}

func (p *play) analysis(of v1alpha1.AnalysisTemplate, name string) *analysis {
	return newAnalysis(p.t, of, map[string]string{"token": reader, "experiment": name})
}

// hook asks one of the two paths with a payload of a kind.
func (p *play) hook(path, name string, kind flagger.HookType) error {
	url := strings.Replace(p.url, "http://", "http://flagger:"+reader+"@", 1) + "/hooks/flagger/" + path
	metadata := map[string]string{"experiment": name}
	return call(p.canary, flagger.CanaryPhaseProgressing, flagger.CanaryWebhook{Type: kind, URL: url, Timeout: "10s", Metadata: &metadata})
}

// told holds everybody's answers about an experiment against what they must be. `why` is in the answers that say no.
func (p *play) told(when, name string, isGo, isStop bool, why string) {
	p.t.Helper()
	for _, kind := range eight {
		for path, yes := range map[string]bool{"confirm": isGo, "rollback": isStop} {
			err := p.hook(path, name, kind)
			if (err == nil) != yes {
				p.t.Fatalf("%s: %s of %s, asked as %s: %v", when, path, name, kind, err)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "403: ") || !strings.Contains(err.Error(), why) && !isStop && !isGo) {
				p.t.Fatalf("%s: %s of %s does not say %q: %v", when, path, name, why, err)
			}
		}
	}
	watch, step := p.analysis(p.watch, name), p.analysis(p.step, name)
	switch {
	case isStop:
		watch.expect(when, failed, failed)
		step.expect(when, failed, failed)
	case isGo:
		watch.expect(when, successful, running)
		step.expect(when, successful, running)
		step.expect(when, successful, successful)
	default:
		watch.expect(when, successful, running)
		step.expect(when, inconclusive, running)
		for step.count < 119 {
			step.measure()
		}
		step.expect(when+", for an hour", inconclusive, inconclusive)
	}
}

func TestTheLifeOfACanary(t *testing.T) {
	s := newStage(t)
	p := &play{stage: s}
	p.watch, p.step = templates(t, s.generate("argo", s.url))
	p.canary = canaryOf(t, s.generate("flagger", strings.Replace(s.url, "http://", "http://flagger:"+reader+"@", 1)))

	begun := newRollout(p.canary)
	begun.tick()
	if begun.weight != 10 {
		t.Fatalf("the first step asks nobody, as there is nothing to ask about: %+v", begun)
	}
	down := p.analysis(p.step, experiment)
	down.expect("no daemon", erroneous, running)
	begun.tick()
	if begun.weight != 10 || begun.failed != 1 {
		t.Fatalf("without a daemon the weight stays: %d, %d checks failed, %v", begun.weight, begun.failed, begun.why)
	}

	s.start()
	s.until("quiet is watched", "quiet", func(g gate) bool { return g.Verdict == "no_data" })
	p.told("no data", "quiet", false, false, "")
	s.until("go", experiment, func(g gate) bool { return g.Go })
	p.told("all is well", experiment, true, false, "")
	begun.tick()
	begun.tick()
	if begun.weight != 30 {
		t.Fatalf("the weight goes on: %d, %v", begun.weight, begun.why)
	}

	s.operate("hold")
	s.until("held", experiment, func(g gate) bool { return !g.Go })
	p.told("a hold", experiment, false, false, "held by operator: the test says so")
	begun.tick()
	if begun.weight != 30 || !strings.Contains(begun.why.Error(), "held by operator") {
		t.Fatalf("a hold holds: %d, %v", begun.weight, begun.why)
	}
	s.operate("resume")
	s.until("go after the hold", experiment, func(g gate) bool { return g.Go })

	s.orders("quiet")
	s.until("silence", experiment, func(g gate) bool { return g.Verdict == "no_data" })
	p.told("data that has stopped", experiment, false, false, "")
	begun.tick()
	if begun.weight != 30 || begun.phase != flagger.CanaryPhaseProgressing {
		t.Fatalf("silence holds, and rolls nothing back: %+v", begun)
	}
	s.orders("busy")
	s.until("go after the silence", experiment, func(g gate) bool { return g.Go })
	for begun.phase == flagger.CanaryPhaseProgressing && begun.weight < 50 {
		begun.tick()
	}
	healthy := *begun
	healthy.tick()
	if healthy.phase != flagger.CanaryPhaseSucceeded {
		t.Fatalf("a healthy canary is promoted: %+v", healthy)
	}

	s.orders("slow")
	reason := s.until("stop", experiment, func(g gate) bool { return g.Stop })
	p.told("a breach", experiment, false, true, reason)
	begun.tick()
	if begun.phase != flagger.CanaryPhaseFailed || begun.weight != 0 {
		t.Fatalf("a breach rolls back at once: %+v", begun)
	}
	p.unknown()

	s.stop()
	p.analysis(p.watch, experiment).expect("a daemon that is away", erroneous, running)
	s.start()
	s.until("the stop outlives a restart", experiment, func(g gate) bool { return g.Stop })
	p.told("after a restart", experiment, false, true, "")
	p.refused()
}

// unknown: of an experiment that is in no rule file Flagger is told so, and Argo has an error.
func (p *play) unknown() {
	p.t.Helper()
	for _, path := range []string{"confirm", "rollback"} {
		if err := p.hook(path, "no-such-thing", flagger.RolloutHook); err == nil || !strings.Contains(err.Error(), "403: no experiment `no-such-thing`") {
			p.t.Fatalf("%s: %v", path, err)
		}
	}
	p.analysis(p.watch, "no-such-thing").expect("an unknown experiment", erroneous, running)
}

// refused: without a token nobody is told anything.
func (p *play) refused() {
	p.t.Helper()
	args := map[string]string{"token": "not-the-token-0123456789", "experiment": experiment}
	newAnalysis(p.t, p.watch, args).expect("a wrong token", erroneous, running)
	hook := flagger.CanaryWebhook{Type: flagger.RollbackHook, URL: p.url + "/hooks/flagger/rollback", Timeout: "10s"}
	if err := call(p.canary, flagger.CanaryPhaseProgressing, hook); err == nil || !strings.HasPrefix(err.Error(), "401: ") {
		p.t.Fatalf("a hook without a token: %v", err)
	}
}
