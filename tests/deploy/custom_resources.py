"""Custom resources as their operators define them, as far as the manifests use them; an unknown key is an error.

Fields are those of prometheus-operator's monitoring.coreos.com/v1, KEDA's keda.sh/v1alpha1 and its HTTP add-on's
http.keda.sh/v1beta1.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|[smhdwy]))+$")]
GoDuration = Annotated[str, Field(pattern=r"^([0-9]+(ms|[smh]))+$")]
Percent = Annotated[int, Field(ge=0, le=100)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str
    namespace: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class LabelSelector(Strict):
    matchLabels: dict[str, str] = {}
    matchExpressions: list[dict[str, Any]] = []


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    scheme: Literal["http", "https"] = "http"
    interval: Duration
    scrapeTimeout: Duration
    honorLabels: bool = False
    bearerTokenSecret: dict[str, str] | None = None
    relabelings: list[dict[str, Any]] = []
    metricRelabelings: list[dict[str, Any]] = []


class ServiceMonitorSpec(Strict):
    selector: LabelSelector
    endpoints: Annotated[list[Endpoint], Field(min_length=1)]
    jobLabel: str | None = None
    targetLabels: list[str] = []
    namespaceSelector: dict[str, Any] | None = None
    sampleLimit: int | None = None


class ServiceMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class PodMonitorSpec(Strict):
    selector: LabelSelector
    podMetricsEndpoints: Annotated[list[Endpoint], Field(min_length=1)]
    jobLabel: str | None = None
    podTargetLabels: list[str] = []
    namespaceSelector: dict[str, Any] | None = None
    sampleLimit: int | None = None


class PodMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class RecordingRule(Strict):
    record: Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")]
    expr: str
    labels: dict[str, str] = {}


class AlertingRule(Strict):
    alert: str
    expr: str
    for_: Duration | None = Field(None, alias="for")
    keep_firing_for: Duration | None = None
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Strict):
    name: str
    rules: Annotated[list[RecordingRule | AlertingRule], Field(min_length=1)]
    interval: Duration | None = None
    limit: int | None = None
    labels: dict[str, str] = {}


class PrometheusRuleSpec(Strict):
    groups: Annotated[list[RuleGroup], Field(min_length=1)]


class PrometheusRule(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


class ScaleTarget(Strict):
    name: str
    apiVersion: str = "apps/v1"
    kind: str = "Deployment"
    envSourceContainerName: str | None = None


class PrometheusMetadata(Strict):
    serverAddress: str
    query: str
    # KEDA takes every one of them as text.
    threshold: Annotated[str, Field(pattern=r"^[0-9.]+$")]
    activationThreshold: Annotated[str, Field(pattern=r"^[0-9.]+$")] = "0"
    ignoreNullValues: Literal["true", "false"] = "true"
    namespace: str | None = None
    unsafeSsl: Literal["true", "false"] = "false"


class InterceptorMetadata(Strict):
    scalerAddress: Annotated[str, Field(pattern=r"^[a-z0-9.-]+:[0-9]+$")]
    interceptorRoute: str


class PrometheusTrigger(Strict):
    type: Literal["prometheus"]
    name: str | None = None
    metricType: Literal["AverageValue", "Value"] = "AverageValue"
    metadata: PrometheusMetadata
    authenticationRef: dict[str, str] | None = None


class InterceptorTrigger(Strict):
    type: Literal["external-push"]
    name: str | None = None
    metadata: InterceptorMetadata


class ScalingPolicy(Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(ge=1)]
    periodSeconds: Annotated[int, Field(ge=1, le=1800)]


class ScalingRules(Strict):
    stabilizationWindowSeconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: list[ScalingPolicy] = []


class Behavior(Strict):
    scaleUp: ScalingRules | None = None
    scaleDown: ScalingRules | None = None


class HorizontalPodAutoscalerConfig(Strict):
    name: str | None = None
    behavior: Behavior | None = None


class Advanced(Strict):
    restoreToOriginalReplicaCount: bool = False
    horizontalPodAutoscalerConfig: HorizontalPodAutoscalerConfig | None = None


class ScaledObjectSpec(Strict):
    scaleTargetRef: ScaleTarget
    triggers: Annotated[
        list[Annotated[PrometheusTrigger | InterceptorTrigger, Field(discriminator="type")]], Field(min_length=1)
    ]
    pollingInterval: int = 30
    cooldownPeriod: int = 300
    initialCooldownPeriod: int = 0
    idleReplicaCount: int | None = None
    minReplicaCount: Annotated[int, Field(ge=0)] = 0
    maxReplicaCount: Annotated[int, Field(ge=1)] = 100
    fallback: dict[str, Any] | None = None
    advanced: Advanced | None = None


class ScaledObject(Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class RouteTarget(Strict):
    service: str
    port: int | None = None
    portName: str | None = None


class RouteRule(Strict):
    hosts: list[str] = []
    paths: list[dict[str, str]] = []
    headers: list[dict[str, str]] = []


class Concurrency(Strict):
    targetValue: Annotated[int, Field(ge=1)]


class RequestRate(Strict):
    targetValue: Annotated[int, Field(ge=1)]
    window: GoDuration | None = None
    granularity: GoDuration | None = None


class ScalingMetric(Strict):
    concurrency: Concurrency | None = None
    requestRate: RequestRate | None = None


class Timeouts(Strict):
    readiness: GoDuration | None = None
    responseHeader: GoDuration | None = None
    request: GoDuration | None = None


class InterceptorRouteSpec(Strict):
    target: RouteTarget
    rules: list[RouteRule] = []
    scalingMetric: ScalingMetric
    timeouts: Timeouts | None = None
    coldStart: dict[str, Any] | None = None


class InterceptorRoute(Strict):
    apiVersion: Literal["http.keda.sh/v1beta1"]
    kind: Literal["InterceptorRoute"]
    metadata: Metadata
    spec: InterceptorRouteSpec


MODELS: dict[str, type[Strict]] = {
    model.__name__: model for model in (ServiceMonitor, PodMonitor, PrometheusRule, ScaledObject, InterceptorRoute)
}
