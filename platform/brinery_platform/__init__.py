"""The platform: gateway, controller, forwarders, and the parts that they share."""
