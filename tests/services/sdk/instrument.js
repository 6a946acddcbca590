// Loaded before the service: OpenTelemetry's SDK with the HTTP instrumentation, set up by the environment.
const { NodeSDK } = require('@opentelemetry/sdk-node');
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http');

new NodeSDK({ instrumentations: [new HttpInstrumentation()] }).start();
